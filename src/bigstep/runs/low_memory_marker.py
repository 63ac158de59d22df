"""A mark on disk while a step runs with little memory left, so that a process that dies of it starts smaller next time.

The system may kill a process that takes too much, and a library may crash where an allocation fails; neither can be caught.
A kill for another reason, with memory to spare, leaves no mark and changes nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from bigstep.atomic_files import read_record, write_json
from bigstep.runtime.device import headroom_bytes
from bigstep.runtime.heap import free_heap_bytes
from bigstep.training.loop import EpochBatches

__all__ = ["LowMemoryMarker", "clear_marks", "failed_micro_batch_size", "mark_path"]

LEAST_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Mark:
    """The micro-batch size of the steps that ran."""

    micro_batch_size: int


def failed_micro_batch_size(path: Path) -> int | None:
    """Return the smallest micro-batch size at which a process of the last start died with little memory left, or None."""
    sizes = []
    for found in _marks(path):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(read_record(Mark, found).micro_batch_size)
    return min(sizes, default=None)


def clear_marks(path: Path) -> None:
    """Remove the marks of all processes: the training has ended well, perhaps in fewer of them than died before."""
    for found in _marks(path):
        found.unlink(missing_ok=True)


def _marks(path: Path) -> list[Path]:
    return [path, *path.parent.glob(f"{path.stem}.*{path.suffix}")]


def mark_path(path: Path, rank: int) -> Path:
    """Return the path of the mark of one of several processes; that of the first is ``path``."""
    return path if rank == 0 else path.with_name(f"{path.stem}.{rank}{path.suffix}")


@final
class LowMemoryMarker:
    """The batches of another source; before each the mark is set or taken away by the memory that is left."""

    def __init__(self, batches: EpochBatches, path: Path, need_bytes: int, micro_batch_size: Callable[[], int]) -> None:
        """Mark where less than twice ``need_bytes``, of a step, or less than half a gibibyte is left."""
        self.batches = batches
        self.path = path
        self.need_bytes = need_bytes
        self.least_bytes = max(2 * need_bytes, LEAST_BYTES)
        self.micro_batch_size = micro_batch_size
        self._marked: int | None = None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch, from the batch ``start`` on."""
        for batch in self.batches.epoch(epoch, start):
            self._update()
            yield batch

    def clear(self) -> None:
        """Remove the mark: the training has ended, well or with an error."""
        self.path.unlink(missing_ok=True)
        self._marked = None

    def _update(self) -> None:
        kept = min(free_heap_bytes(), self.need_bytes)  # by earlier steps, for this one
        if headroom_bytes() + kept >= self.least_bytes:
            if self._marked is not None:
                self.clear()
            return
        size = self.micro_batch_size()
        if size != self._marked:
            write_json(asdict(Mark(size)), self.path)
            self._marked = size
