"""One resumable, tracked training run: metric log, checkpoints, low-memory marker."""
