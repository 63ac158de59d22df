"""One optimizer step over an effective batch; needs torch only, and fits any training loop."""
