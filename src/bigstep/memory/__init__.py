"""What a step costs in bytes: predicted, measured, tracked."""
