"""The predicted memory of a training step."""

from dataclasses import replace

import torch

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.train import TrainConfig
from bigstep.memory.prediction import MemoryPrediction, predict_memory
from bigstep.models.classifier import Classifier
from bigstep.training.optimization import build_optimizer

__all__ = ["predict_training"]


def predict_training(
    classifier: Classifier, train: TrainConfig, sample_shape: tuple[int, ...], batch: BatchSizes
) -> MemoryPrediction:
    """Predict the bytes of tensors of a training step on stored images ``(channels, size, size)``, or on other samples."""
    found = predict_memory(
        classifier,
        sample_shape,
        batch.micro_batch_size,
        optimizer=lambda parameters: build_optimizer(train, parameters),
        precision=train.precision,
        input_dtype=classifier.input_dtype,
        effective_batch_size=None if classifier.mean.is_cuda else batch.effective_batch_size,  # it stays on the host
        average=train.ema_decay is not None,
        channels_last=not classifier.sample_shape and isinstance(train.augmentation, str),  # a list of transforms copies
    )
    kept = torch.get_rng_state().nbytes  # the random state of before the step
    return replace(found, peak_bytes=found.peak_bytes + kept, fixed_bytes=found.fixed_bytes + kept)
