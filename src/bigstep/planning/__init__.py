"""From measured speed and memory to a micro-batch size."""
