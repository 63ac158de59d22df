"""Processes that train the trials of a study, and their supervisor."""
