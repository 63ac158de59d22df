"""The result of a search: summary, plots, other micro-batch sizes."""
