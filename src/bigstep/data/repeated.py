"""Images that are in more than one part: a test on what was trained on makes a model look better than it is."""

import csv
import hashlib
from array import array
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from bigstep.data.split import SPLITS

__all__ = ["HEADER_REPEATED", "PixelDigests", "count_repeated"]

HEADER_REPEATED = ("group", "index", "part", "class", "name")
DIGEST_BYTES = 8  # of a sample in memory; of 100 million different images two agree by chance once in 3,700 times


@final
class PixelDigests:
    """A digest for the pixels of each sample, in order."""

    def __init__(self) -> None:
        """Start without samples."""
        self._digests = array("Q")

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Add a sample."""
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=DIGEST_BYTES).digest()
        self._digests.append(int.from_bytes(digest, "little"))

    def groups(self, parts: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Return the number of each sample's group, from 1: of those that are the same image as one of another part, else 0.

        Args:
            parts: the part of each sample, shape ``(n,)``.
        """
        digests = np.asarray(self._digests, np.uint64)
        _, group = np.unique(digests, return_inverse=True)
        held = np.zeros((int(group.max(initial=-1)) + 1, len(SPLITS)), bool)
        held[group, parts] = True
        samples = np.flatnonzero((held.sum(axis=1) > 1)[group])
        _, first, group = np.unique(group[samples], return_index=True, return_inverse=True)
        numbers = np.empty(len(first), np.int32)
        numbers[np.argsort(first)] = np.arange(1, len(first) + 1)
        found = np.zeros(len(digests), np.int32)
        found[samples] = numbers[group]
        return found


def count_repeated(path: Path, part: str | None = None) -> int:
    """Count the rows of ``repeated.csv``, all or those of a part; 0 if there is no such file."""
    if not path.exists():
        return 0
    with path.open(newline="", encoding="utf-8") as file:
        return sum(part is None or row["part"] == part for row in csv.DictReader(file))
