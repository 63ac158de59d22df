"""What a source of images yields, and what `prepare` needs of a source."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from bigstep.data.decoding import Decoded, Layout, Refusal
from bigstep.data.manifest import SourceFile

__all__ = ["Sample", "Source"]


@dataclass(frozen=True)
class Sample:
    """One sample, or the refusal of one: its pixels, class index and name, and the part its source puts it in (or -1)."""

    name: str
    label: int
    given: int
    result: Decoded | Refusal


class Source(Protocol):
    """What ``prepare`` needs of a source of images."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""
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
