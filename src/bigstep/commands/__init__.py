"""One module for each `bigstep ...` command that is no stage."""
