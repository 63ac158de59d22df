"""Samples in a file, mapped into memory: each block of the file is checked against its digest when it is first read.

So the first batch of a training waits for the blocks that hold it, and not for the whole file; every byte that is used was
checked. Pages that were read are given back now and then: they stay in the system's cache and do not count as the process's.
"""

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigstep.errors import DataError

__all__ = ["BLOCK_BYTES", "MappedArray", "digest_blocks"]

BLOCK_BYTES = 2**18  # a batch of random samples reads as many blocks at first: small ones, 32 bytes of digest for each
DIGEST_BYTES = hashlib.sha256().digest_size
FAULT_BYTES = 2**16  # that the system maps at once around the byte that is read
RESIDENT_BYTES = 2**26  # mapped pages, after which they are given back

Index = int | np.integer[Any] | slice | list[int] | NDArray[np.int64]


class MappedArray:
    """A read-only array of samples, of shape ``(n, ...)``, in a file of just these bytes.

    An int or a slice returns a view, an array of indices a copy.
    """

    def __init__(  # keywords with defaults, each apart
        self,
        path: Path,
        shape: tuple[int, ...],
        digests: bytes | None,
        block_bytes: int = BLOCK_BYTES,
        dtype: str = "uint8",
        resident_bytes: int = RESIDENT_BYTES,
    ) -> None:
        """Map a file.

        Args:
            path: of the file.
            shape: ``(n, ...)``.
            digests: those of :func:`digest_blocks`; None checks nothing.
            block_bytes: that one digest is of.
            dtype: of NumPy.
            resident_bytes: mapped pages, after which they are given back.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file or ``digests`` has another length.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if path.stat().st_size != size:
            raise ValueError(f"{path.name} does not have the size given in the manifest")
        num_blocks = -(-size // block_bytes) if digests is not None else 0
        if digests is not None and len(digests) != num_blocks * DIGEST_BYTES:
            raise ValueError(f"images.blocks does not have a digest for each of {num_blocks} blocks")
        self.path, self.shape, self.block_bytes = path, shape, block_bytes
        self._digests = digests or b""
        self._unchecked = np.ones(num_blocks, bool)
        self._num_unchecked = num_blocks
        self._sample_bytes = size // shape[0]
        self._resident_bytes, self._most_resident = 0, resident_bytes
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._array: NDArray[Any] = np.frombuffer(self._map, dtype).reshape(shape)

    def __len__(self) -> int:
        """Count the samples."""
        return self.shape[0]

    def __getitem__(self, index: Index) -> NDArray[Any]:
        """Return samples.

        Raises:
            DataError: a block that holds one of them was changed.
        """
        if self._num_unchecked:
            self._check(self._blocks_of(_as_indices(index, len(self))))
        found: NDArray[Any] = self._array[index]
        places = 1 if isinstance(index, int | np.integer | slice) else len(found)
        self._give_back(found.nbytes + FAULT_BYTES * places)
        return found

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Return each sample."""
        return (self[index] for index in range(len(self)))

    def check_all(self) -> None:
        """Read every block that was not read before.

        Raises:
            DataError: a block was changed.
        """
        self._check(np.arange(len(self._unchecked)))

    def _blocks_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        first = indices * self._sample_bytes // self.block_bytes
        last = ((indices + 1) * self._sample_bytes - 1) // self.block_bytes
        span = int((last - first).max(initial=0)) + 1
        return np.unique(np.minimum(first[:, None] + np.arange(span), last[:, None]))

    def _check(self, blocks: NDArray[np.int64]) -> None:
        for block in blocks[self._unchecked[blocks]].tolist():
            start = block * self.block_bytes
            content = memoryview(self._map)[start : start + self.block_bytes]
            if hashlib.sha256(content).digest() != self._digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]:
                raise DataError(self._describe(start, start + len(content)))
            self._unchecked[block] = False
            self._num_unchecked -= 1
            self._give_back(self.block_bytes)

    def _describe(self, start: int, end: int) -> str:
        samples = f"samples {start // self._sample_bytes} to {(end - 1) // self._sample_bytes}"
        return (
            f"{self.path.parent}: expected what prepare wrote, got other pixels in {self.path.name}, {samples}; "
            "delete the folder and run `bigstep prepare --force` (`bigstep verify` checks DVC's cache)"
        )

    def _give_back(self, num_bytes: int) -> None:
        if self._array.nbytes <= self._most_resident:
            return  # mapping its pages again would cost more than they take
        self._resident_bytes += num_bytes
        if self._resident_bytes > self._most_resident and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._resident_bytes = 0


def digest_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> bytes:
    """Return the SHA-256 of each block of a file, one after another; memory does not grow with the file."""
    with path.open("rb") as file:
        return b"".join(hashlib.sha256(block).digest() for block in iter(lambda: file.read(block_bytes), b""))


def _as_indices(index: Index, length: int) -> NDArray[np.int64]:
    if isinstance(index, slice):
        return np.arange(*index.indices(length), dtype=np.int64)
    indices = np.atleast_1d(np.asarray(index, np.int64))
    return np.where(indices < 0, indices + length, indices)
