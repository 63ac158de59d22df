"""Finished runs beside each other: what was different, and whether the results differ by more than chance."""
