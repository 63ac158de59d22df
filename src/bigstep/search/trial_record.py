"""What a trial of a study records."""

__all__ = ["LEARNED", "MEASURED", "NOISE"]
MEASURED = ("seconds", "images_per_second", "peak_bytes")
NOISE = "noise_scale"  # attribute of a trial, in samples
LEARNED = ("val_loss", "val_accuracy", "best_epoch", "epochs", "num_updates", "diverged")
