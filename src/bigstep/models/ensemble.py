"""Several models as one: the weighted mean of what they predict."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.models.classifier import Classifier
from bigstep.tasks.task import Task

__all__ = ["Ensemble"]


@final
class Ensemble(nn.Module):
    """Takes the same samples as each of its members, and returns outputs whose prediction is the mean of theirs."""

    shares: Tensor

    def __init__(
        self, members: Sequence[Classifier], weights: Sequence[float], temperature: float = 1.0, *, task: Task
    ) -> None:
        """Combine ``members``, each with its weight; ``temperature`` divides the logits (Guo et al., 2017)."""
        super().__init__()
        self.task = task
        self.members = nn.ModuleList(members)
        self.temperature = temperature
        shares = torch.tensor(weights, dtype=torch.float64)
        self.register_buffer("shares", shares / shares.sum(), persistent=False)

    @property
    def mean(self) -> Tensor:
        """The mean pixel of the stored images, on the members' device."""
        first: Any = self.members[0]
        mean: Tensor = first.mean
        return mean

    def forward(self, images: Tensor) -> Tensor:
        """Map samples as stored to outputs ``(n, outputs)``: logits or standardised numbers."""
        outputs: list[Any] = [member(images) for member in self.members]
        return self.task.combine(outputs, self.shares) / self.temperature
