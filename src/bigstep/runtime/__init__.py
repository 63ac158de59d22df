"""This process and this machine: signals, child processes, device, locks."""
