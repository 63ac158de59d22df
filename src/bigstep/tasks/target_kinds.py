"""The targets of each task: how one is read, stored, counted and shown."""

import functools
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CLASSIFICATION",
    "LARGEST",
    "MULTILABEL",
    "REGRESSION",
    "ROUNDING",
    "ClassTargets",
    "LabelTargets",
    "NumberTargets",
    "Statistics",
]

CLASSIFICATION, MULTILABEL, REGRESSION = "classification", "multilabel", "regression"
BETWEEN = "|"  # labels or numbers in one cell of a table
LARGEST = float(np.finfo(np.float32).max)  # of a number, which is learned and predicted in float32
ROUNDING = 1e-12  # deviations below, relative to the mean, are those of one and the same number
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@final
@dataclass(frozen=True)
class ClassTargets:
    """One class a sample: stored as its index, int64 of shape ``(n,)``."""

    names: tuple[str, ...]
    task: ClassVar[str] = CLASSIFICATION
    counts_samples: ClassVar[bool] = True

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def read(self, value: Any) -> int:
        """Accept the name of a class, or its index."""
        if isinstance(value, str) and value in self._places:
            return self._places[value]
        number = np.asarray(value)
        if number.ndim == 0 and number.dtype.kind in "iu" and 0 <= int(number) < len(self.names):
            return int(number)
        raise ValueError(f"a target: expected an integer from 0 to {len(self.names) - 1} or the name of a class, got {value!r}")

    def buffer(self) -> "array[int]":
        """Return an empty array of int64."""
        return array("q")

    def flat(self, value: int) -> Sequence[int]:
        """Return the index alone."""
        return (value,)

    def stack(self, numbers: Any) -> NDArray[np.int64]:
        """Return indices ``(n,)``."""
        return np.asarray(numbers, np.int64)

    def check(self, stored: NDArray[Any], count: int) -> None:
        """Refuse what is no index of a class for each sample."""
        _check_array(stored, np.int64, (count,))
        if len(stored) and not 0 <= int(stored.min()) <= int(stored.max()) < len(self.names):
            raise ValueError(f"labels.npy has a value outside 0 to {len(self.names) - 1}")

    def counts(self, stored: NDArray[Any]) -> dict[str, int]:
        """Count the samples of each class."""
        return dict(zip(self.names, np.bincount(stored, minlength=len(self.names)).tolist(), strict=True))

    def describe(self, value: int) -> str:
        """Return the name of the class."""
        return self.names[value]

    def statistics(self, stored: NDArray[Any]) -> Statistics:
        """Return nothing."""
        del stored
        return (), ()


@final
@dataclass(frozen=True)
class LabelTargets:
    """Any number of labels a sample: stored as 0 or 1 for each, uint8 of shape ``(n, labels)``."""

    names: tuple[str, ...]
    task: ClassVar[str] = MULTILABEL
    counts_samples: ClassVar[bool] = True

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def read(self, value: Any) -> NDArray[np.uint8]:
        """Accept a list of names, or 0 or 1 for each label."""
        listed = list(value) if isinstance(value, list | tuple | set | frozenset) else None
        if listed is not None and all(isinstance(item, str) and item in self._places for item in listed):
            found = np.zeros(len(self.names), np.uint8)
            found[[self._places[name] for name in listed]] = 1
            return found
        numbers = None if isinstance(value, set | frozenset) else np.asarray(value)
        is_vector = numbers is not None and numbers.shape == (len(self.names),) and numbers.dtype.kind in "biuf"
        if numbers is not None and is_vector and np.isin(numbers, (0, 1)).all():
            return numbers.astype(np.uint8)
        raise ValueError(
            f"a target: expected a list of labels among {_listed(self.names)}, or {len(self.names)} zeros and ones, "
            f"got {value!r}"
        )

    def buffer(self) -> "array[int]":
        """Return an empty array of bytes."""
        return array("B")

    def flat(self, value: NDArray[np.uint8]) -> Sequence[int]:
        """Return the zeros and ones."""
        flat: list[int] = value.tolist()
        return flat

    def stack(self, numbers: Any) -> NDArray[np.uint8]:
        """Return zeros and ones ``(n, labels)``."""
        return np.asarray(numbers, np.uint8).reshape(-1, len(self.names))

    def check(self, stored: NDArray[Any], count: int) -> None:
        """Refuse what is no zero or one for each label of each sample."""
        _check_array(stored, np.uint8, (count, len(self.names)))
        if stored.max(initial=0) > 1:
            raise ValueError("labels.npy has a value other than 0 and 1")

    def counts(self, stored: NDArray[Any]) -> dict[str, int]:
        """Count the samples that have each label."""
        return dict(zip(self.names, stored.sum(axis=0, dtype=np.int64).tolist(), strict=True))

    def describe(self, value: NDArray[np.uint8]) -> str:
        """Return the names of the labels that a sample has."""
        return BETWEEN.join(name for name, has in zip(self.names, value, strict=True) if has)

    def statistics(self, stored: NDArray[Any]) -> Statistics:
        """Return nothing."""
        del stored
        return (), ()


@final
@dataclass(frozen=True)
class NumberTargets:
    """One or several numbers a sample: float64 of shape ``(n, numbers)``."""

    names: tuple[str, ...]
    task: ClassVar[str] = REGRESSION
    counts_samples: ClassVar[bool] = False

    def read(self, value: Any) -> NDArray[np.float64]:
        """Accept a number, or one for each name."""
        numbers = np.atleast_1d(np.asarray(None if isinstance(value, str) else value))
        if numbers.shape == (len(self.names),) and numbers.dtype.kind in "biuf":
            wide = numbers.astype(np.float64)
            if (np.abs(wide) <= LARGEST).all():
                return wide
        count = "a finite number" if len(self.names) == 1 else f"{len(self.names)} finite numbers"
        raise ValueError(f"a target: expected {count} of at most {LARGEST:.2g} ({_listed(self.names)}), got {value!r}")

    def buffer(self) -> "array[float]":
        """Return an empty array of float64."""
        return array("d")

    def flat(self, value: NDArray[np.float64]) -> Sequence[float]:
        """Return the numbers."""
        flat: list[float] = value.tolist()
        return flat

    def stack(self, numbers: Any) -> NDArray[np.float64]:
        """Return numbers ``(n, names)``."""
        return np.asarray(numbers, np.float64).reshape(-1, len(self.names))

    def check(self, stored: NDArray[Any], count: int) -> None:
        """Refuse what is no finite number for each name of each sample."""
        _check_array(stored, np.float64, (count, len(self.names)))
        if not np.isfinite(stored).all():
            raise ValueError("labels.npy has a number that is not finite")

    def counts(self, stored: NDArray[Any]) -> dict[str, int]:
        """Count nothing."""
        del stored
        return {}

    def describe(self, value: NDArray[np.float64]) -> str:
        """Return the numbers, with the digits that read back as the same."""
        return BETWEEN.join(repr(float(number)) for number in value)

    def statistics(self, stored: NDArray[Any]) -> Statistics:
        """Return mean and standard deviation of each number, summed exactly, so that no rounding depends on the order."""
        count = max(len(stored), 1)
        means = [math.fsum(column) / count for column in stored.T]
        spreads = [math.sqrt(math.fsum((column - mean) ** 2) / count) for column, mean in zip(stored.T, means, strict=True)]
        return tuple(means), tuple(
            spread if spread > ROUNDING * abs(mean) else 1.0 for mean, spread in zip(means, spreads, strict=True)
        )


def _check_array(stored: NDArray[Any], kind: type, shape: tuple[int, ...]) -> None:
    if stored.dtype != kind or stored.shape != shape:
        numbers = "one" if len(shape) == 1 else f"{shape[1]}"
        raise ValueError(f"labels.npy does not contain {numbers} {np.dtype(kind).name} per sample")


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
