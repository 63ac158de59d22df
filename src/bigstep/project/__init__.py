"""The project on disk: its files, parameters, attempts, private copies, and what DVC knows of them."""
