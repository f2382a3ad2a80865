"""Documents to batches: files, pipes, the Hub and the built-in stories."""
