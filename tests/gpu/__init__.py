"""Checks that run on a GPU and, in the usual suite, on the CPU."""
