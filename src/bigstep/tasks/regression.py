"""One or several numbers a sample: the squared error of standardised numbers, and the absolute error in their own units.

The network learns numbers of mean 0 and standard deviation 1 (those of the training part), whatever their units; what is
evaluated and served is scaled back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigstep.config.train import TrainConfig
from bigstep.step.losses import Loss, MeanSquaredError
from bigstep.tasks.targets import REGRESSION
from bigstep.tasks.task import refuse

__all__ = ["Regression", "StandardizedCall", "StandardizedLoss"]


@final
@dataclass(frozen=True)
class Regression:
    """See :class:`bigstep.tasks.task.Task`; ``mean`` and ``std`` are those of the targets of the training part."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: ClassVar[str] = REGRESSION
    score: ClassVar[str] = "mae"
    higher_is_better: ClassVar[bool] = False
    champion: ClassVar[str] = "val_mae"
    output: ClassVar[str] = "values"

    @property
    def guessing(self) -> Mapping[str, float]:
        """Every answer is the mean."""
        return {"val_loss": 1.0, "val_mae": sum(self.std) / len(self.std)}

    def check(self, train: TrainConfig) -> None:
        """Refuse what mixes, smooths or weighs classes, and a metric of another task."""
        refuse(self, train, "label_smoothing", "class_weights", "mixup_alpha", "cutmix_alpha")

    def loss(self, train: TrainConfig, targets: NDArray[Any] | None) -> "StandardizedLoss":
        """Return the mean squared error of standardised numbers."""
        del train, targets
        return StandardizedLoss(MeanSquaredError(), self)

    def standardize(self, targets: Tensor) -> Tensor:
        """Return targets ``(n, numbers)`` in standard deviations from their means."""
        return (targets.double() - targets.new_tensor(self.mean)) / targets.new_tensor(self.std)

    def scale_back(self, outputs: Tensor) -> Tensor:
        """Return outputs ``(n, numbers)`` in the units of the targets, in float64."""
        wide = outputs.double()
        return wide * wide.new_tensor(self.std) + wide.new_tensor(self.mean)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return numbers in the units of the targets."""
        return self.scale_back(outputs).float()

    def combine(self, outputs: Sequence[Tensor], shares: Tensor) -> Tensor:
        """Return the mean of standardised numbers."""
        return torch.stack([share * numbers.double() for share, numbers in zip(shares, outputs, strict=True)]).sum(dim=0)

    def tally(self, device: torch.device) -> "NumberTally":
        """Start with no samples."""
        return NumberTally(self, device)


@final
class StandardizedLoss:
    """A loss of standardised numbers, as of :class:`bigstep.step.losses.Loss`."""

    def __init__(self, inner: Loss, task: Regression) -> None:
        """Standardise targets for ``inner``."""
        self.inner, self.task = inner, task

    def sum(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum over a micro-batch; outputs ``(n, numbers)`` are in standard deviations, targets in their own units."""
        return self.inner.sum(outputs, self.task.standardize(targets))

    def weight(self, targets: Tensor) -> float:
        """Return that of the loss."""
        return self.inner.weight(targets)


@final
class StandardizedCall(nn.Module):
    """A callable loss of standardised numbers."""

    def __init__(self, inner: nn.Module, task: Regression) -> None:
        """Standardise targets for ``inner``, and give them the type of the outputs, at least float32."""
        super().__init__()
        self.inner, self.task = inner, task

    def forward(self, outputs: Tensor, targets: Tensor) -> Any:
        """Return what ``inner`` returns."""
        return self.inner(outputs, self.task.standardize(targets).to(torch.promote_types(outputs.dtype, torch.float32)))


@final
class NumberTally:
    """Sums squared errors of standardised numbers, and absolute errors in their own units."""

    def __init__(self, task: Regression, device: torch.device) -> None:
        """Sum on ``device``."""
        self._task = task
        self._squares, self._errors = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        self._count = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add outputs and targets ``(n, numbers)``."""
        self._squares += (outputs.double() - self._task.standardize(targets)).square().sum()
        self._errors += (self._task.scale_back(outputs) - targets).abs().sum()
        self._count += targets.numel()

    def pool(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Replace the sums by those of all processes."""
        sums = torch.stack([self._squares, self._errors, self._squares.new_tensor(self._count)])
        self._squares, self._errors, count = add_up(sums).unbind()
        self._count = int(count)

    def result(self) -> tuple[float, float]:
        """Return the mean of the squares, and the mean absolute error."""
        return float(self._squares) / self._count, float(self._errors) / self._count
