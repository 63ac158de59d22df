"""A loss is (sum, weight): the sums of micro-batches add up, and their total is divided once.

For a batch with per-sample losses l and weights w, torch's ``reduction="mean"`` is sum(w * l) / sum(w). Each class here gives
the numerator of a micro-batch (:meth:`Loss.sum`) and the denominator of the whole effective batch (:meth:`Loss.weight`),
which needs the targets only, so it is known before the first forward pass.
"""

from typing import Protocol, final, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "Loss", "MeanSquaredError"]


@runtime_checkable
class Loss(Protocol):
    """What the accumulator needs of a loss whose weight follows from the targets."""

    def sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum the weighted losses of a micro-batch: a scalar that carries a gradient."""
        ...

    def weight(self, targets: Tensor) -> float:
        """Return what ``reduction="mean"`` divides by for these targets (read from the device once)."""
        ...


@final
class CrossEntropy:
    """:func:`torch.nn.functional.cross_entropy`, with its argument names.

    ``targets`` are class indices of shape ``(n, ...)``, weighed by the class weights of the labels that are not ignored, or
    probabilities of shape ``(n, C, ...)``, weighed by their number of samples, as torch does.
    """

    def __init__(self, weight: Tensor | None = None, ignore_index: int = -100, label_smoothing: float = 0.0) -> None:
        """Accept torch's arguments; ``weight`` has shape ``(C,)``."""
        self.class_weights = None if weight is None else weight.detach()
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self._host_weights = None if weight is None else weight.detach().to("cpu", torch.float64)

    def sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum over a micro-batch; ``outputs`` are logits of shape ``(n, C, ...)``."""
        weights = self.class_weights
        return F.cross_entropy(
            outputs,
            targets if not targets.is_floating_point() else targets.to(outputs.dtype),
            weight=None if weights is None else weights.to(outputs.device, outputs.dtype),
            ignore_index=self.ignore_index,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def weight(self, targets: Tensor) -> float:
        """Sum the class weights of the valid labels; count the samples of soft targets."""
        if targets.is_floating_point():
            return targets.numel() / targets.shape[1]
        valid = targets[targets != self.ignore_index]
        if self._host_weights is None:
            return float(valid.numel())
        return float(self._host_weights[valid.cpu()].sum())


@final
class BinaryCrossEntropy:
    """:func:`torch.nn.functional.binary_cross_entropy_with_logits`, with its argument names, for one or many labels.

    ``weight`` and ``pos_weight`` have the shape of one sample's labels (no batch dimension), or one that broadcasts to it.
    """

    def __init__(self, weight: Tensor | None = None, pos_weight: Tensor | None = None) -> None:
        """Accept torch's arguments."""
        self.label_weights = weight
        self.pos_weight = pos_weight

    def sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum over a micro-batch; ``outputs`` are logits of the shape of ``targets``."""
        return F.binary_cross_entropy_with_logits(
            outputs,
            targets.to(outputs.dtype),
            weight=_like(self.label_weights, outputs),
            pos_weight=_like(self.pos_weight, outputs),
            reduction="sum",
        )

    def weight(self, targets: Tensor) -> float:
        """Count the elements."""
        return float(targets.numel())


@final
class MeanSquaredError:
    """:func:`torch.nn.functional.mse_loss`."""

    def sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum over a micro-batch; ``outputs`` have the shape of ``targets``."""
        return F.mse_loss(outputs, targets.to(outputs.dtype), reduction="sum")

    def weight(self, targets: Tensor) -> float:
        """Count the elements."""
        return float(targets.numel())


def _like(value: Tensor | None, outputs: Tensor) -> Tensor | None:
    return None if value is None else value.to(outputs.device, outputs.dtype)
