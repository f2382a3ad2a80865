"""What a person starts: the command line around all other rooms."""
