"""What a source of images yields, and what `prepare` needs of a source."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bigstep.data.decoding import Decoded, Layout, Refusal
from bigstep.data.manifest import SourceFile
from bigstep.tasks.targets import Targets

__all__ = ["Sample", "Source", "is_missing"]


def is_missing(value: Any) -> bool:
    """Return whether a cell has no value: None, or as pandas writes that: NaN of Python or NumPy, NA, NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # of pandas, which need not be installed
        return True
    return isinstance(value, float | np.floating) and math.isnan(value)


@dataclass(frozen=True)
class Sample:
    """One sample, or the refusal of one: its pixels, name and target, and the part its source puts it in (or -1)."""

    name: str
    label: Any
    """The index of its class; of another task what :meth:`bigstep.tasks.targets.Targets.read` returns."""
    given: int
    result: Decoded | Refusal
    group: str = ""
    """Samples of one group are not split between parts; empty: it is of none."""


class Source(Protocol):
    """What ``prepare`` needs of a source of images."""

    @property
    def targets(self) -> Targets:
        """What a label is: of one class, of several, or numbers."""
        ...

    @property
    def layout(self) -> Layout:
        """How the pixels of every sample are laid out."""
        ...

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """Files that hold many samples each; empty where each sample is a file."""
        ...

    @property
    def num_ignored(self) -> int:
        """Files that belong to no class."""
        ...

    def __len__(self) -> int:
        """Count the samples, refused ones included."""
        ...

    def __iter__(self) -> Iterator[Sample]:
        """Return every sample once."""
        ...
