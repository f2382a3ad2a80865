"""What an exported model takes along: it imports nothing of Pico."""
