"""What a target is, whichever the task. Without torch, since ``prepare`` imports it."""

from array import array
from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from bigstep.tasks.target_kinds import (
    CLASSIFICATION,
    MULTILABEL,
    REGRESSION,
    ClassTargets,
    LabelTargets,
    NumberTargets,
    Statistics,
)

__all__ = [
    "CLASSIFICATION",
    "MULTILABEL",
    "REGRESSION",
    "ClassTargets",
    "LabelTargets",
    "NumberTargets",
    "Statistics",
    "Targets",
    "targets_of",
]


class Targets(Protocol):
    """The targets of a task; ``names`` are those of the outputs."""

    @property
    def task(self) -> str:
        """The name of the task."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, the labels or the numbers."""
        ...

    @property
    def counts_samples(self) -> bool:
        """Whether :meth:`counts` counts by name."""
        ...

    def read(self, value: Any) -> Any:
        """Turn what a data set yields into what is stored.

        Raises:
            ValueError: it is no target; the text says what is expected.
        """
        ...

    def buffer(self) -> "array[Any]":
        """Return an empty array that targets are added to by ``extend`` of :meth:`flat`."""
        ...

    def flat(self, value: Any) -> Sequence[Any]:
        """Return the numbers of one target."""
        ...

    def stack(self, numbers: Any) -> NDArray[Any]:
        """Return the targets of all samples, shape ``(n,)`` or ``(n, outputs)``, from their numbers one after another."""
        ...

    def check(self, stored: NDArray[Any], count: int) -> None:
        """Refuse an array that :meth:`stack` cannot have returned for ``count`` samples.

        Raises:
            ValueError: its type, shape or values.
        """
        ...

    def counts(self, stored: NDArray[Any]) -> dict[str, int]:
        """Count the samples by name; empty where nothing is counted."""
        ...

    def describe(self, value: Any) -> str:
        """Return one target as a cell of a table."""
        ...

    def statistics(self, stored: NDArray[Any]) -> Statistics:
        """Return mean and standard deviation of each output over some samples; empty where they mean nothing."""
        ...


KINDS = {kind.task: kind for kind in (ClassTargets, LabelTargets, NumberTargets)}


def targets_of(task: str, names: Sequence[str]) -> Targets:
    """Return the targets of the task with this name.

    Raises:
        ValueError: there is no such task.
    """
    if task not in KINDS:
        raise ValueError(f"expected a task among {', '.join(KINDS)}, got {task!r}")
    kind: Any = KINDS[task]
    found: Targets = kind(tuple(names))
    return found
