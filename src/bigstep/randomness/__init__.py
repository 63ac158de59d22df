"""Random numbers that depend on the sample and not on the cut; needs torch only."""
