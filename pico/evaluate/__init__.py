"""One model, judged: causal bits per byte, its routing, compressors beside it, the report."""
