"""Text out: generation, sampling, and the readers that run a model for it."""
