"""What the training loop yields."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["EpochRecord", "StepRecord", "Validation"]


@dataclass(frozen=True)
class StepRecord:
    """One step: one effective batch, one attempt at an optimizer step."""

    step: int
    """Position in the data over all epochs, from 0."""
    epoch: int
    """From 0; what is shown or written counts from 1."""
    num_samples: int
    loss: Tensor
    """Weighted mean over the effective batch, on the model's device."""
    weight: float
    """Of the effective batch: what its sum of losses was divided by."""
    gradient_norm: float
    """Of the whole effective batch, before clipping."""
    learning_rate: float
    """That the update used."""
    noise_scale: float | None
    """Gradient noise scale so far, in samples; None if there is no value yet."""
    applied: bool
    """False: dropped, since the batch had no weight or its gradient was not finite."""
    micro_batch_size: int
    """The largest that the step used; 0 where it used none."""


@dataclass(frozen=True)
class Validation:
    """Means over a part of the data: the task's plain loss (no smoothing, no class weights), and its score."""

    loss: float
    score: float
    """Accuracy; of several labels their F1, of numbers the absolute error."""


@dataclass(frozen=True)
class EpochRecord:
    """The end of an epoch."""

    epoch: int
    num_updates: int
    """Updates applied so far."""
    num_dropped: int
    """Steps dropped so far."""
    train_loss: float
    """Weighted mean over the epoch's samples, as trained (smoothing, class weights), but for steps whose loss is no number."""
    validation: Validation
    is_best: bool
    """Whether this epoch's weights are the best so far."""
    peak_bytes: int | None
    """Most bytes of tensors in a step of this epoch; None where it was not measured."""
