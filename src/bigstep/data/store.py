"""Prepared images on disk, read by memory mapping: opening them costs no memory and no time, however many there are.

Pixels are checked when they are first read, block by block. A store of format 1, of earlier versions, has no digests of
blocks: it is read whole before it is used.

=================  ===========================================================================
``images.u8``      uint8 of shape ``(n, size, size, channels)``, in the order of the source; of samples that are no images the
                   bytes of numbers of the manifest's shape and type
``images.blocks``  SHA-256 of each block of ``images.u8``, 32 bytes each
``labels.npy``     int64 of shape ``(n,)``; of other tasks as :mod:`bigstep.tasks.targets` says
``parts.npy``      uint8 of shape ``(n,)``: 0 train, 1 validation, 2 test
``samples.csv``    index, part, class and file of each sample, with the file's SHA-256
``skipped.csv``    every file that was skipped, and why
``manifest.json``  all the rest, as :class:`Manifest`
=================  ===========================================================================
"""

import csv
import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigstep.atomic_files import sha256
from bigstep.data.manifest import CHECKED_AT_START, Manifest
from bigstep.data.mapped_array import MappedArray
from bigstep.data.split import SPLITS, Split
from bigstep.errors import DataError

__all__ = ["Store", "StorePaths", "digest_parts"]

DIGESTED_AT_ONCE = 256  # samples


@dataclass(frozen=True)
class StorePaths:
    """The files of a store."""

    root: Path

    @property
    def images(self) -> Path:
        """Pixels."""
        return self.root / "images.u8"

    @property
    def blocks(self) -> Path:
        """Digests of the pixels' blocks."""
        return self.root / "images.blocks"

    @property
    def labels(self) -> Path:
        """Class indices."""
        return self.root / "labels.npy"

    @property
    def parts(self) -> Path:
        """Which part each sample belongs to."""
        return self.root / "parts.npy"

    @property
    def samples(self) -> Path:
        """Where each sample came from."""
        return self.root / "samples.csv"

    @property
    def skipped(self) -> Path:
        """Files that were skipped."""
        former = self.root / "refused.csv"  # of stores before version 0.2
        return former if former.exists() else self.root / "skipped.csv"

    @property
    def repeated(self) -> Path:
        """Images that are in more than one part; a store without any has no such file."""
        return self.root / "repeated.csv"

    @property
    def manifest(self) -> Path:
        """Everything else."""
        return self.root / "manifest.json"


class Store:
    """Read access to a prepared folder."""

    def __init__(self, root: Path) -> None:
        """Open without reading the pixels.

        Raises:
            DataError: the folder is missing, torn or of another format.
        """
        self.paths = StorePaths(root)
        self.manifest = Manifest.read(self.paths.manifest)
        try:
            self._check_files(CHECKED_AT_START)
            self.images = self._map_images()
            self.labels: NDArray[Any] = _load(self.paths.labels)
            self.parts: NDArray[np.uint8] = _load(self.paths.parts)
            self.manifest.targets.check(self.labels, self.manifest.num_samples)
            _check_parts(self.parts, self.manifest.num_samples)
            _check_counts(self.manifest, self.labels, self.parts)
        except (OSError, ValueError) as error:
            raise DataError(f"{root}: expected complete prepared data, got: {error}; run `bigstep prepare --force`") from None

    def _map_images(self) -> MappedArray:
        manifest = self.manifest
        digests = self.paths.blocks.read_bytes() if manifest.is_in_blocks else None
        shape = (manifest.num_samples, *manifest.stored_shape)
        return MappedArray(self.paths.images, shape, digests, manifest.block_bytes, manifest.sample_dtype)

    def _check_files(self, names: Iterable[str]) -> None:
        for name in sorted(names) if self.manifest.is_in_blocks else ():
            if sha256(self.paths.root / name) != self.manifest.checksums[name]:
                raise ValueError(f"{name} does not match its checksum in the manifest")

    def verify_former(self) -> None:
        """Read a store of format 1 whole; what later ones hold is checked when it is read.

        Raises:
            DataError: a part holds other bytes.
        """
        if self.manifest.is_in_blocks:
            return
        found = digest_parts(self.images, self.labels, self.parts)
        for part, digest in self.manifest.digests.items():
            if found.get(part) != digest:
                raise DataError(
                    f"{self.paths.root}: expected what prepare wrote, got other pixels or labels in the {part} split; "
                    "delete the folder and run `bigstep prepare --force` (`bigstep verify` checks DVC's cache)"
                )

    def verify(self) -> None:
        """Read every file, and compare with the digests that were taken when they were written.

        Raises:
            DataError: a file holds other bytes, or cannot be read.
        """
        try:
            self._check_files(self.manifest.checksums)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.paths.root}: expected what prepare wrote, got: {error}; run `bigstep prepare --force`"
            ) from None
        self.verify_former()
        self.images.check_all()

    def indices(self, split: Split) -> NDArray[np.int64]:
        """Return the samples of a split, in order."""
        return np.flatnonzero(self.parts == split)

    def names(self, indices: NDArray[np.int64] | None = None) -> list[str]:
        """Return the source's name of each sample, or of some, in ascending order.

        Raises:
            DataError: samples.csv is not what prepare wrote.
        """
        chosen = np.ones(self.manifest.num_samples, bool) if indices is None else np.isin(np.arange(len(self.labels)), indices)
        return [name for (name, _), is_chosen in zip(self._rows(), chosen, strict=True) if is_chosen]

    def origins(self) -> list[tuple[str, str]]:
        """Return the source's name of each sample, and the SHA-256 of its file.

        Raises:
            DataError: samples.csv is not what prepare wrote.
        """
        return list(self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        try:
            with self.paths.samples.open(newline="", encoding="utf-8") as file:
                count = 0
                for count, row in enumerate(csv.DictReader(file), 1):
                    if None in (row["name"], row["sha256"]) or count > self.manifest.num_samples:
                        break
                    yield row["name"], row["sha256"]
                else:
                    if count == self.manifest.num_samples:
                        return
            raise ValueError(f"it does not have {self.manifest.num_samples} complete rows")
        except (OSError, ValueError, KeyError, csv.Error) as error:
            raise DataError(
                f"{self.paths.samples}: expected one row per sample, got: {error}; run `bigstep prepare --force`"
            ) from None


def _load(path: Path) -> NDArray[Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a header that is refused below
            array = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 # of a damaged header: EOFError, SyntaxError, TokenError, ...
        raise ValueError(f"{path.name} is damaged ({type(error).__name__})") from None
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise ValueError(f"{path.name} does not contain one array")
    return array


def _check_parts(parts: NDArray[Any], count: int) -> None:
    if parts.dtype != np.uint8 or parts.shape != (count,):
        raise ValueError("parts.npy does not contain one uint8 per sample")
    if len(parts) and int(parts.max()) >= len(SPLITS):
        raise ValueError(f"parts.npy has a value outside 0 to {len(SPLITS) - 1}")


def _check_counts(manifest: Manifest, labels: NDArray[Any], parts: NDArray[np.uint8]) -> None:
    for part, name in enumerate(SPLITS):
        is_in = parts == part
        if manifest.counts[name] != manifest.targets.counts(labels[is_in]) or manifest.part_sizes[name] != is_in.sum():
            raise ValueError(f"the counts in manifest.json do not match the split {name}")


def digest_parts(images: MappedArray, labels: NDArray[Any], parts: NDArray[np.uint8]) -> dict[str, str]:
    """Hash pixels and labels of each part, in order, and all parts together."""
    digests = {name: hashlib.sha256() for name in SPLITS}
    for start in range(0, len(labels), DIGESTED_AT_ONCE):
        for index, pixels in enumerate(images[start : start + DIGESTED_AT_ONCE], start):
            digest = digests[SPLITS[parts[index]]]
            digest.update(pixels.tobytes())
            digest.update(labels[index].tobytes())
    found = {name: digest.hexdigest() for name, digest in digests.items()}
    return {**found, "all": hashlib.sha256("".join(found.values()).encode()).hexdigest()}
