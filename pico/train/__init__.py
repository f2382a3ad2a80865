"""One run: its loop, step, optimizers and processes."""
