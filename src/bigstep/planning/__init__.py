"""From speed and memory to a slicing."""
