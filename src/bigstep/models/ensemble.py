"""Several classifiers as one: the weighted mean of their probabilities, as logits."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.models.classifier import Classifier

__all__ = ["Ensemble"]


@final
class Ensemble(nn.Module):
    """Takes the same images as each of its members, and returns logits whose softmax is the mean of their probabilities."""

    shares: Tensor

    def __init__(self, members: Sequence[Classifier], weights: Sequence[float], temperature: float = 1.0) -> None:
        """Combine ``members``, each with its weight; ``temperature`` divides the logits (Guo et al., 2017)."""
        super().__init__()
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
        """Map uint8 images ``(n, channels, size, size)`` to logits ``(n, num_classes)``."""
        parts = [
            share * member(images).double().softmax(dim=1) for share, member in zip(self.shares, self.members, strict=True)
        ]
        probabilities = torch.stack(parts).sum(dim=0)
        logits: Tensor = torch.log(probabilities.clamp_min(torch.finfo(torch.float32).tiny)) / self.temperature
        return logits
