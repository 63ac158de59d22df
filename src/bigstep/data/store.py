"""Prepared images on disk, read by memory mapping: opening them costs no memory, however many there are.

=================  ===========================================================================
``images.u8``      uint8 of shape ``(n, size, size, channels)``, in the order of the source
``labels.npy``     int64 of shape ``(n,)``
``parts.npy``      uint8 of shape ``(n,)``: 0 train, 1 validation, 2 test
``samples.csv``    index, part, class and file of each sample, with the file's SHA-256
``skipped.csv``    every file that was skipped, and why
``manifest.json``  all the rest, as :class:`Manifest`
=================  ===========================================================================
"""

import csv
import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigstep.atomic_files import read_record, sha256
from bigstep.data.split import SPLITS, Split
from bigstep.errors import DataError

__all__ = ["FORMAT", "Manifest", "SourceFile", "Store", "StorePaths", "digest_parts"]

FORMAT = 1


@dataclass(frozen=True)
class SourceFile:
    """A file of the source, by its name and SHA-256."""

    name: str
    sha256: str

    @classmethod
    def hashed(cls, path: Path, folder: Path) -> "SourceFile":
        """Hash ``path``, and name it from ``folder``."""
        return cls(path.relative_to(folder).as_posix(), sha256(path))


@dataclass(frozen=True)
class StorePaths:
    """The files of a store."""

    root: Path

    @property
    def images(self) -> Path:
        """Pixels."""
        return self.root / "images.u8"

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
    def manifest(self) -> Path:
        """Everything else."""
        return self.root / "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a store holds; ``digests`` are SHA-256 over the pixels and labels of each part."""

    source: str
    classes: tuple[str, ...]
    size: int
    channels: int
    num_samples: int
    counts: dict[str, dict[str, int]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalization: str
    files: tuple[SourceFile, ...]
    refused: dict[str, int]
    num_refused: int
    num_ignored: int
    digests: dict[str, str]
    format: int = field(default=FORMAT)
    record: str = field(default="")
    """SHA-256 of all other fields; stores of earlier versions have none."""

    @property
    def digest(self) -> str:
        """One digest for the data: 64 hexadecimal digits."""
        return self.digests["all"]

    def to_json(self) -> str:
        """Write as JSON, keys in order."""
        return json.dumps({**asdict(self), "record": self.summed()}, indent=2, ensure_ascii=True) + "\n"

    def summed(self) -> str:
        """Return the SHA-256 of all fields but ``record``."""
        fields = {name: value for name, value in asdict(self).items() if name != "record"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def check(self) -> None:
        """Refuse what prepare never writes.

        Raises:
            ValueError: the format, the statistics or the digest of the record.
        """
        if self.format != FORMAT:
            raise ValueError(f"format {self.format}")
        if min(self.size, self.channels, self.num_samples) < 1 or not self.classes or "all" not in self.digests:
            raise ValueError("no samples")
        if not len(self.mean) == len(self.std) == self.channels or not np.isfinite([*self.mean, *self.std]).all():
            raise ValueError("mean and std are not one finite number per channel")
        if min(self.std) <= 0:
            raise ValueError("std is not positive")
        if self.record not in ("", self.summed()):
            raise ValueError("fields with values of the wrong kind")
        if self.counts.keys() != set(SPLITS) or any(part.keys() != set(self.classes) for part in self.counts.values()):
            raise ValueError("counts are missing for a split or class")

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: the file is missing or is no manifest of this format.
        """
        try:
            manifest = read_record(cls, path)
            manifest.check()
            return manifest
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; run `bigstep prepare`") from None
        except ValueError as error:
            raise DataError(
                f"{path}: expected a manifest of format {FORMAT}, got an invalid one ({error}); run `bigstep prepare --force`"
            ) from None


class Store:
    """Read access to a prepared folder."""

    def __init__(self, root: Path) -> None:
        """Open without reading the pixels.

        Raises:
            DataError: the folder is missing, torn or of another format.
        """
        self.paths = StorePaths(root)
        self.manifest = Manifest.read(self.paths.manifest)
        shape = (self.manifest.num_samples, self.manifest.size, self.manifest.size, self.manifest.channels)
        try:
            if self.paths.images.stat().st_size != int(np.prod(shape)):
                raise ValueError("images.u8 does not have the size given in the manifest")
            self.images: NDArray[np.uint8] = np.memmap(self.paths.images, np.uint8, "r", shape=shape)
            self.labels: NDArray[np.int64] = _load(self.paths.labels, np.int64, self.manifest.num_samples)
            self.parts: NDArray[np.uint8] = _load(self.paths.parts, np.uint8, self.manifest.num_samples)
            _check_range(self.labels, len(self.manifest.classes), "labels.npy")
            _check_range(self.parts, len(SPLITS), "parts.npy")
            _check_counts(self.manifest, self.labels, self.parts)
        except (OSError, ValueError) as error:
            raise DataError(f"{root}: expected complete prepared data, got: {error}; run `bigstep prepare --force`") from None

    def verify(self) -> None:
        """Read every pixel and label, and compare with the digests that were taken when they were written.

        Raises:
            DataError: a part holds other bytes.
        """
        found = digest_parts(self.images, self.labels, self.parts)
        for part, digest in self.manifest.digests.items():
            if found.get(part) != digest:
                raise DataError(
                    f"{self.paths.root}: expected what prepare wrote, got other pixels or labels in the {part} split; "
                    "delete the folder and run `bigstep prepare --force` (`bigstep verify` checks DVC's cache)"
                )

    def indices(self, split: Split) -> NDArray[np.int64]:
        """Return the samples of a split, in order."""
        return np.flatnonzero(self.parts == split)

    def names(self) -> list[str]:
        """Return the source's name of each sample.

        Raises:
            DataError: samples.csv is not what prepare wrote.
        """
        return [name for name, _ in self.origins()]

    def origins(self) -> list[tuple[str, str]]:
        """Return the source's name of each sample, and the SHA-256 of its file.

        Raises:
            DataError: samples.csv is not what prepare wrote.
        """
        try:
            with self.paths.samples.open(newline="", encoding="utf-8") as file:
                found = [(row["name"], row["sha256"]) for row in csv.DictReader(file)]
            if len(found) != self.manifest.num_samples or any(None in pair for pair in found):
                raise ValueError(f"it does not have {self.manifest.num_samples} complete rows")
            return found
        except (OSError, ValueError, KeyError, csv.Error) as error:
            raise DataError(
                f"{self.paths.samples}: expected one row per sample, got: {error}; run `bigstep prepare --force`"
            ) from None


def _load(path: Path, kind: type, length: int) -> NDArray[Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a header that is refused below
            array = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 # of a damaged header: EOFError, SyntaxError, TokenError, ...
        raise ValueError(f"{path.name} is damaged ({type(error).__name__})") from None
    if not isinstance(array, np.ndarray) or array.dtype != kind or array.shape != (length,):
        raise ValueError(f"{path.name} does not contain one {np.dtype(kind).name} per sample")
    return array


def _check_range(values: NDArray[Any], limit: int, name: str) -> None:
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < limit:
        raise ValueError(f"{name} has a value outside 0 to {limit - 1}")


def _check_counts(manifest: Manifest, labels: NDArray[np.int64], parts: NDArray[np.uint8]) -> None:
    for part, name in enumerate(SPLITS):
        found = np.bincount(labels[parts == part], minlength=len(manifest.classes)).tolist()
        if [manifest.counts[name][item] for item in manifest.classes] != found:
            raise ValueError(f"the counts in manifest.json do not match the split {name}")


def digest_parts(images: NDArray[np.uint8], labels: NDArray[np.int64], parts: NDArray[np.uint8]) -> dict[str, str]:
    """Hash pixels and labels of each part, in order, and all parts together."""
    digests = {name: hashlib.sha256() for name in SPLITS}
    for index in range(len(labels)):
        digest = digests[SPLITS[parts[index]]]
        digest.update(images[index].tobytes())
        digest.update(labels[index].tobytes())
    found = {name: digest.hexdigest() for name, digest in digests.items()}
    return {**found, "all": hashlib.sha256("".join(found.values()).encode()).hexdigest()}
