"""What a training needs to know about its task, whichever it is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from bigstep.config.train import TrainConfig
from bigstep.errors import ConfigError
from bigstep.step.losses import Loss

__all__ = ["Tally", "Task", "refuse"]


class Tally(Protocol):
    """Sums over the samples of a part: the same whatever the batches."""

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: the network's outputs ``(n, outputs)``, and the targets as stored."""
        ...

    def pool(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Replace the sums by those of all processes; ``add_up`` sums a vector over them, and is called once."""
        ...

    def result(self) -> tuple[float, float]:
        """Return the mean loss and the score of all samples so far."""
        ...


class Task(Protocol):
    """One of the tasks, for data with these names."""

    @property
    def name(self) -> str:
        """classification, multilabel or regression."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs: the network has one output for each."""
        ...

    @property
    def score(self) -> str:
        """Name of the score that is computed beside the loss, as in ``val_<score>``."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is better."""
        ...

    @property
    def champion(self) -> str:
        """Name of the validation metric by which a registered model beats another; the lower wins."""
        ...

    @property
    def output(self) -> str:
        """What :meth:`predict` returns, in one word."""
        ...

    @property
    def guessing(self) -> Mapping[str, float]:
        """Loss and score on the validation part, by name, of a model that has learned nothing."""
        ...

    def check(self, train: TrainConfig) -> None:
        """Refuse values of the section ``train`` that mean nothing in this task.

        Raises:
            ConfigError: one line.
        """
        ...

    def loss(self, train: TrainConfig, targets: NDArray[Any] | None) -> Loss:
        """Return the loss to train with.

        Args:
            train: the section ``train``.
            targets: of the training part, for weights that follow from them; None: no weights.

        Raises:
            ConfigError: there are not as many weights as outputs.
        """
        ...

    def predict(self, outputs: Tensor) -> Tensor:
        """Turn the network's outputs ``(n, outputs)`` into what is served, of the same shape in float32."""
        ...

    def combine(self, outputs: Sequence[Tensor], shares: Tensor) -> Tensor:
        """Return outputs whose prediction is the weighted mean of what several networks predict, in float64.

        Args:
            outputs: of each network, ``(n, outputs)``.
            shares: of each, ``(networks,)``; their sum is 1.
        """
        ...

    def tally(self, device: torch.device) -> Tally:
        """Return sums over no samples yet."""
        ...


def refuse(task: Task, train: TrainConfig, *keys: str, because: str = "") -> None:
    """Refuse keys of ``train`` that differ from their defaults, and a metric of another task as ``train.monitor``.

    ``because`` is added to the line; empty: the targets have no use for the key.

    Raises:
        ConfigError: one line.
    """
    for key in keys:
        value, default = getattr(train, key), TrainConfig.model_fields[key].default
        if value != default and value:
            shown = "null" if default is None else default
            raise ConfigError(
                f"train.{key}: expected {shown} {because or f'with targets of {task.name}, which have no use for it'}, "
                f"got {value}; write {shown}"
            )
    allowed = ("val_loss", f"val_{task.score}")
    if train.monitor not in allowed:
        raise ConfigError(
            f"train.monitor: expected {' or '.join(allowed)} with targets of {task.name}, got {train.monitor}; "
            f"write {allowed[1]}"
        )
