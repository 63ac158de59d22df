"""Losses of auxiliary heads, for architectures that return several logits in training."""

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from bigstep.step.losses import Loss

__all__ = ["AuxiliaryLoss"]


@final
@dataclass(frozen=True)
class AuxiliaryLoss:
    """The main head's loss plus ``share`` of each auxiliary head's, all by the same weight."""

    loss: Loss
    share: float

    def sum(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum over a micro-batch; ``outputs`` is logits, or a tuple of them with the main head's first."""
        if isinstance(outputs, Tensor):
            return self.loss.sum(outputs, targets)
        main, *others = (self.loss.sum(logits, targets) for logits in outputs if logits is not None)
        total: Tensor = main
        for other in others:
            total = total + self.share * other
        return total

    def weight(self, targets: Tensor) -> float:
        """Return the main head's."""
        return self.loss.weight(targets)
