"""Which metrics a journal holds, kept beside it, so that opening a long journal again reads its end only.

The index says how far it has read the journal. It is written now and then, by a rename: after a kill the lines behind it are
read again. One that is lost, torn, or of another journal is built again from the whole of it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bigstep.atomic_files import read_record, write_json

__all__ = ["INDEXED_EVERY", "SpoolIndex", "read_index", "tail_of"]

INDEXED_EVERY = 2**20  # bytes of the journal that may be read again
TAIL_BYTES = 4096  # before the index's offset, by which it knows its journal


@dataclass
class SpoolIndex:
    """The steps of each metric in the first ``offset`` bytes of a journal, as runs: first, stride and last."""

    offset: int = 0
    tail: str = ""
    runs: dict[str, list[list[int]]] = field(default_factory=dict)
    digest: str = ""

    def has(self, key: str, step: int) -> bool:
        """Return whether the journal holds this step of a metric."""
        runs = self.runs.get(key, [])
        return any(first <= step <= last and (step - first) % stride == 0 for first, stride, last in reversed(runs))

    def add(self, entry: Mapping[str, Any], offset: int) -> None:
        """Add an entry that ends at ``offset``."""
        self.offset = offset
        for key, _, step, _ in entry["rows"] if entry["entry"] == "metrics" else ():
            self._add_step(self.runs.setdefault(key, []), step)

    @staticmethod
    def _add_step(runs: list[list[int]], step: int) -> None:
        """Steps come one after another, or once an epoch: a run holds any number of them."""
        if runs:
            run = runs[-1]
            first, stride, last = run
            if first == last and step > last:
                run[1:] = [step - first, step]
                return
            if step == last + stride:
                run[2] = step
                return
        runs.append([step, 1, step])

    def write(self, journal: Path) -> None:
        """Write it beside the journal."""
        self.tail = tail_of(journal, self.offset)
        self.digest = self._summed()
        write_json(asdict(self), _path(journal))

    def _summed(self) -> str:
        return hashlib.sha256(json.dumps([self.offset, self.tail, self.runs]).encode()).hexdigest()

    def is_of(self, journal: Path) -> bool:
        """Return whether it is whole, and describes this journal."""
        return (
            0 <= self.offset <= journal.stat().st_size
            and self.digest == self._summed()
            and self.tail == tail_of(journal, self.offset)
            and all(len(run) == 3 and run[1] > 0 for runs in self.runs.values() for run in runs)
        )


def read_index(journal: Path) -> SpoolIndex:
    """Return the index beside a journal; an empty one if it is missing, torn, or of another journal."""
    try:
        found = read_record(SpoolIndex, _path(journal))
        return found if found.is_of(journal) else SpoolIndex()
    except (OSError, ValueError):
        return SpoolIndex()


def tail_of(journal: Path, offset: int) -> str:
    """Return the SHA-256 of the bytes before ``offset``: at most :data:`TAIL_BYTES`."""
    with journal.open("rb") as file:
        file.seek(max(0, offset - TAIL_BYTES))
        return hashlib.sha256(file.read(min(offset, TAIL_BYTES))).hexdigest()


def _path(journal: Path) -> Path:
    return journal.with_name("index.json")
