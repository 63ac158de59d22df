"""Any number of labels a sample: binary cross-entropy, and F1 averaged over the labels."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bigstep.config.train import TrainConfig
from bigstep.step.losses import BinaryCrossEntropy
from bigstep.tasks.classification import check_weights
from bigstep.tasks.targets import MULTILABEL
from bigstep.tasks.task import refuse

__all__ = ["MultiLabel"]


@final
@dataclass(frozen=True)
class MultiLabel:
    """See :class:`bigstep.tasks.task.Task`."""

    names: tuple[str, ...]
    name: ClassVar[str] = MULTILABEL
    score: ClassVar[str] = "f1"
    higher_is_better: ClassVar[bool] = True
    champion: ClassVar[str] = "val_loss"
    output: ClassVar[str] = "probabilities"

    @property
    def guessing(self) -> Mapping[str, float]:
        """Every label is as likely as not."""
        return {"val_loss": math.log(2), "val_f1": 0.0}

    def check(self, train: TrainConfig) -> None:
        """Refuse label smoothing, and a metric of another task."""
        refuse(self, train, "label_smoothing")

    def loss(self, train: TrainConfig, targets: NDArray[Any] | None) -> BinaryCrossEntropy:
        """Return binary cross-entropy; ``train.class_weights`` weigh the samples that have a label."""
        return BinaryCrossEntropy(pos_weight=None if targets is None else self._weights(train, targets))

    def _weights(self, train: TrainConfig, targets: NDArray[Any]) -> Tensor | None:
        if train.class_weights == "balanced":
            positive = targets.sum(axis=0)
            lacking = (len(targets) - positive).clip(min=1)  # a weight of 0 would never teach a label that all samples have
            return torch.from_numpy(lacking / positive.clip(min=1))
        return check_weights(train, len(self.names), "labels")

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the probability of each label."""
        return outputs.float().sigmoid()

    def combine(self, outputs: Sequence[Tensor], shares: Tensor) -> Tensor:
        """Return the logits of the mean of probabilities."""
        chances = [
            torch.stack([share * (sign * logits.double()).sigmoid() for share, logits in zip(shares, outputs, strict=True)])
            for sign in (1, -1)
        ]
        has, lacks = (torch.log(chance.sum(dim=0).clamp_min(torch.finfo(torch.float32).tiny)) for chance in chances)
        return has - lacks

    def tally(self, device: torch.device) -> "LabelTally":
        """Start with no samples."""
        return LabelTally(len(self.names), device)


@final
class LabelTally:
    """Sums the binary cross-entropy, and counts for each label what is right, wrong and missing."""

    def __init__(self, count: int, device: torch.device) -> None:
        """Sum on ``device``."""
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._hits, self._wrong = (torch.zeros(count, dtype=torch.int64, device=device) for _ in range(2))
        self._count = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add logits ``(n, labels)`` and zeros and ones of the same shape."""
        self._loss += F.binary_cross_entropy_with_logits(outputs.double(), targets.double(), reduction="sum")
        predicted, actual = outputs > 0, targets.bool()
        self._hits += (predicted & actual).sum(dim=0)
        self._wrong += (predicted ^ actual).sum(dim=0)
        self._count += targets.numel()

    def pool(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Replace the sums by those of all processes."""
        size = len(self._hits)
        sums = add_up(
            torch.cat(
                [self._hits.double(), self._wrong.double(), torch.stack([self._loss, self._loss.new_tensor(self._count)])]
            )
        )
        self._hits, self._wrong = sums[:size].long(), sums[size : 2 * size].long()
        self._loss, self._count = sums[-2], int(sums[-1])

    def result(self) -> tuple[float, float]:
        """Return mean binary cross-entropy, and the mean of the labels' F1; that of a label without answers is 0."""
        f1 = 2 * self._hits.double() / (2 * self._hits + self._wrong).clamp(min=1)
        return float(self._loss) / self._count, float(f1.mean())
