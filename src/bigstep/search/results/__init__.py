"""What a search found: summary, plots, other slicings."""
