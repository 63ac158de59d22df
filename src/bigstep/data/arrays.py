"""Samples that are no images: arrays of one fixed shape and type, such as rows of a table, token ids or measured series."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigstep.data.manifest import DTYPES
from bigstep.data.mapped_array import MappedArray
from bigstep.tasks.target_kinds import LARGEST, ROUNDING

__all__ = ["measure_arrays", "read_array"]

AT_ONCE = 1024  # samples


def read_array(value: Any, like: NDArray[Any] | None = None) -> NDArray[Any]:
    """Turn a sample into an array of a type that torch computes with; booleans become uint8, unsigned integers int64.

    Args:
        value: an array, a tensor, or numbers in lists.
        like: the first sample, whose shape and type all others have.

    Raises:
        ValueError: it holds no finite numbers, or has another shape or type; the text says which.
    """
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if array.dtype.name not in DTYPES or not array.ndim or not array.size:
        raise ValueError(f"an array: expected numbers, got {array.dtype} of shape {array.shape}")
    if like is not None and array.shape != like.shape:
        raise ValueError(f"an array: expected shape {like.shape} as that of sample 0, got {array.shape}")
    if like is not None and array.dtype != like.dtype:
        raise ValueError(f"an array: expected {like.dtype} as in sample 0, got {array.dtype}")
    if array.dtype.kind == "f" and not (np.abs(array) <= np.float64(LARGEST)).all():
        raise ValueError(
            f"an array: expected finite numbers of at most {LARGEST:.2g}, got NaN, infinity or larger ones; leave such "
            "samples out, or fill them"
        )
    return np.ascontiguousarray(array)


def measure_arrays(arrays: MappedArray, indices: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of floating-point numbers for each index of the first axis: a column, or a channel.

    Args:
        arrays: samples ``(n, features, ...)``.
        indices: of those to measure.

    Returns:
        Of integers nothing: they are names, such as those of tokens.
    """
    if arrays[0].dtype.kind != "f":
        return (), ()
    count = len(indices) * int(np.prod(arrays.shape[2:]))
    mean = _sums(arrays, indices, np.zeros(arrays.shape[1]), 1) / count
    std = np.sqrt(_sums(arrays, indices, mean, 2) / count)
    return tuple(mean.tolist()), tuple(np.where(std > ROUNDING * np.abs(mean), std, 1.0).tolist())


def _sums(arrays: MappedArray, indices: NDArray[np.int64], less: NDArray[np.float64], power: int) -> NDArray[np.float64]:
    """Sum powers of what the numbers are above ``less``, for each index of the first axis; blocks are summed exactly."""
    blocks = []
    for start in range(0, len(indices), AT_ONCE):
        rows = arrays[indices[start : start + AT_ONCE]].astype(np.float64)
        rows = rows.reshape(len(rows), len(less), -1) - less[:, None]
        blocks.append((rows**power).sum(axis=(0, 2)))
    return np.array([math.fsum(column) for column in zip(*blocks, strict=True)])
