"""One class a sample: cross-entropy, and the share of samples whose likeliest class is theirs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bigstep.config.train import TrainConfig
from bigstep.errors import ConfigError
from bigstep.step.losses import CrossEntropy
from bigstep.tasks.targets import CLASSIFICATION
from bigstep.tasks.task import refuse

__all__ = ["Classification", "check_weights"]


@final
@dataclass(frozen=True)
class Classification:
    """See :class:`bigstep.tasks.task.Task`."""

    names: tuple[str, ...]
    name: ClassVar[str] = CLASSIFICATION
    score: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    champion: ClassVar[str] = "val_loss"
    output: ClassVar[str] = "probabilities"

    @property
    def guessing(self) -> Mapping[str, float]:
        """Every class is equally likely."""
        return {"val_loss": math.log(len(self.names)), "val_accuracy": 0.0}

    def check(self, train: TrainConfig) -> None:
        """Refuse a metric of another task."""
        refuse(self, train)

    def loss(self, train: TrainConfig, targets: NDArray[Any] | None) -> CrossEntropy:
        """Return cross-entropy with ``train.label_smoothing`` and ``train.class_weights``."""
        weights = None if targets is None else self._weights(train, targets)
        return CrossEntropy(weight=weights, label_smoothing=train.label_smoothing)

    def _weights(self, train: TrainConfig, targets: NDArray[Any]) -> Tensor | None:
        if train.class_weights == "balanced":
            counts = np.bincount(targets, minlength=len(self.names))
            return torch.from_numpy(counts.sum() / (len(self.names) * counts))  # as scikit-learn's class_weight="balanced"
        return check_weights(train, len(self.names), "classes")

    def predict(self, outputs: Tensor) -> Tensor:
        """Return probabilities whose sum is 1."""
        return outputs.float().softmax(dim=1)

    def combine(self, outputs: Sequence[Tensor], shares: Tensor) -> Tensor:
        """Return the logarithm of the mean of probabilities."""
        parts = [share * logits.double().softmax(dim=1) for share, logits in zip(shares, outputs, strict=True)]
        return torch.log(torch.stack(parts).sum(dim=0).clamp_min(torch.finfo(torch.float32).tiny))

    def tally(self, device: torch.device) -> "ClassTally":
        """Start with no samples."""
        return ClassTally(device)


@final
class ClassTally:
    """Sums the cross-entropy, and counts what is right."""

    def __init__(self, device: torch.device) -> None:
        """Sum on ``device``."""
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._count = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add logits ``(n, classes)`` and class indices ``(n,)``."""
        self._loss += F.cross_entropy(outputs.double(), targets, reduction="sum")
        self._correct += (outputs.argmax(dim=1) == targets).sum()
        self._count += len(targets)

    def pool(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Replace the sums by those of all processes."""
        sums = torch.stack([self._loss, self._correct.double(), self._loss.new_tensor(self._count)])
        self._loss, correct, count = add_up(sums).unbind()
        self._correct, self._count = correct.long(), int(count)

    def result(self) -> tuple[float, float]:
        """Return mean cross-entropy and accuracy."""
        return float(self._loss) / self._count, float(self._correct) / self._count


def check_weights(train: TrainConfig, count: int, what: str) -> Tensor | None:
    """Return the list of ``train.class_weights`` as a tensor; None without one.

    Raises:
        ConfigError: there are not ``count`` of them.
    """
    weights = train.class_weights
    if weights is None or weights == "balanced":
        return None
    if len(weights) != count:
        raise ConfigError(
            f"train.class_weights: expected one weight for each of the {count} {what}, got {len(weights)}; "
            f"write {count} numbers, or balanced"
        )
    return torch.tensor(weights, dtype=torch.float64)
