"""Images: what to read, how it is stored on disk, in what order samples come."""
