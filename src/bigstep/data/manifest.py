"""The record of a store: what it holds, and the digests by which its files are checked."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bigstep.atomic_files import read_record, sha256
from bigstep.data.split import SPLITS
from bigstep.errors import DataError
from bigstep.tasks.targets import CLASSIFICATION, REGRESSION, Targets, targets_of

__all__ = ["CHECKED_AT_START", "DTYPES", "FORMAT", "Manifest", "SourceFile"]

FORMAT = 2
FIRST_FORMAT = 1  # without block digests: such a store is read whole before it is used
LATER: dict[str, Any] = {"task": CLASSIFICATION, "sizes": {}, "target_mean": (), "target_std": ()}
LATER |= {"sample_shape": (), "sample_dtype": "uint8"}
DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")  # those that torch computes with
CHECKED_AT_START = frozenset({"images.blocks", "labels.npy", "parts.npy"})


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
class Manifest:
    """What a store holds; ``digests`` are SHA-256 over the pixels and labels of each part.

    ``classes`` are the names of the outputs in every task. Fields of :data:`LATER` are written only where they differ from
    their defaults, so that stores of images with classes have the bytes that earlier versions wrote.
    """

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
    """SHA-256 of all other fields; stores of format 1 may have none."""
    block_bytes: int = field(default=0)
    """Bytes of ``images.u8`` that one digest of ``images.blocks`` covers."""
    checksums: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the other files of the store, by name."""
    task: str = field(default=CLASSIFICATION)
    sizes: dict[str, int] = field(default_factory=dict)
    """Samples of each part, of tasks whose counts do not add up to them."""
    target_mean: tuple[float, ...] = field(default=())
    """Mean of each target in the training part, of regression."""
    target_std: tuple[float, ...] = field(default=())
    sample_shape: tuple[int, ...] = field(default=())
    """Of samples that are no images: ``size`` and ``channels`` are 0 then."""
    sample_dtype: str = field(default="uint8")

    @property
    def is_in_blocks(self) -> bool:
        """Whether the pixels are checked block by block, as they are read."""
        return self.format > FIRST_FORMAT

    @property
    def digest(self) -> str:
        """One digest for the data: 64 hexadecimal digits."""
        return self.digests["all"]

    @property
    def is_image(self) -> bool:
        """Whether the samples are images."""
        return not self.sample_shape

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of one sample, as it is stored."""
        return (self.size, self.size, self.channels) if self.is_image else self.sample_shape

    @property
    def targets(self) -> Targets:
        """What the labels are."""
        return targets_of(self.task, self.classes)

    @property
    def part_sizes(self) -> dict[str, int]:
        """Samples of each part."""
        return self.sizes or {part: sum(counts.values()) for part, counts in self.counts.items()}

    def _written(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in LATER or value != LATER[name]}

    def to_json(self) -> str:
        """Write as JSON, keys in order."""
        return json.dumps({**self._written(), "record": self.summed()}, indent=2, ensure_ascii=True) + "\n"

    def summed(self) -> str:
        """Return the SHA-256 of all fields but ``record``."""
        left_out = {"record"} if self.format > FIRST_FORMAT else {"record", "block_bytes", "checksums"}
        fields = {name: value for name, value in self._written().items() if name not in left_out}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def check(self) -> None:
        """Refuse what prepare never writes.

        Raises:
            ValueError: the format, the statistics or the digest of the record.
        """
        if not FIRST_FORMAT <= self.format <= FORMAT:
            raise ValueError(f"format {self.format}")
        if min(*self.stored_shape, self.num_samples) < 1 or not self.classes or "all" not in self.digests:
            raise ValueError("no samples")
        if not len(self.mean) == len(self.std) == self._num_means() or not np.isfinite([*self.mean, *self.std]).all():
            raise ValueError("mean and std are not one finite number per channel")
        if min(self.std, default=1) <= 0:
            raise ValueError("std is not positive")
        if self.record != self.summed() and (self.record or self.is_in_blocks):
            raise ValueError("fields with values of the wrong kind")
        if self.is_in_blocks and (self.block_bytes < 1 or not self.checksums.keys() >= CHECKED_AT_START):
            raise ValueError("no digests of blocks")
        counted = set(self.classes) if self.targets.counts_samples else set()
        if self.counts.keys() != set(SPLITS) or any(part.keys() != counted for part in self.counts.values()):
            raise ValueError("counts are missing for a split or class")
        self._check_task()

    def _num_means(self) -> int:
        if self.is_image:
            return self.channels
        if self.sample_dtype not in DTYPES:
            raise ValueError(f"samples of {self.sample_dtype}")
        return self.sample_shape[0] if np.dtype(self.sample_dtype).kind == "f" else 0

    def _check_task(self) -> None:
        if (self.task != CLASSIFICATION) != (self.sizes.keys() == set(SPLITS)):
            raise ValueError("sizes are missing for a split")
        wanted = len(self.classes) if self.task == REGRESSION else 0
        if not len(self.target_mean) == len(self.target_std) == wanted or not all(std > 0 for std in self.target_std):
            raise ValueError("target_mean and target_std are not one number per target")

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
                f"{path}: expected a manifest of format {FIRST_FORMAT} or {FORMAT}, got an invalid one ({error}); "
                "run `bigstep prepare --force`"
            ) from None
