"""What everyone may use: errors, settings, symbols, files, the device."""
