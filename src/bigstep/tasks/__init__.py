"""What is learned: classes, several labels an image, or numbers; each task in a module of its own."""
