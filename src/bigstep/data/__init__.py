"""Images: what to read, how it lies on disk, which sample comes when."""
