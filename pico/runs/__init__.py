"""The folder of a run on disk: settings, checkpoints, metrics, plots, exports."""
