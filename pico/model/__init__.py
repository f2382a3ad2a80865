"""The networks: tensors in, tensors out. Read pico.py first."""
