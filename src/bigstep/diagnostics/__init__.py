"""`bigstep doctor` and `bigstep verify`: what is damaged, stale or left behind, and its repair."""
