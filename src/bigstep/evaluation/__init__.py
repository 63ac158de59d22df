"""The scores of a trained model on the test part, in each task."""
