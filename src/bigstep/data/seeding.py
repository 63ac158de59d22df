"""Random numbers as a function of what they are for, not of when they are drawn."""

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["derive_key", "random_bits"]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive_key(*parts: int | str) -> int:
    """Hash the parts, in order, to 63 bits."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def random_bits(key: int, ids: NDArray[np.int64], count: int) -> NDArray[np.uint64]:
    """Return each id its own ``count`` random words: uint64 of shape ``(len(ids), count)``.

    A counter-based generator (splitmix64: Steele, Lea and Flood, 2014), so a sample's words do not depend on its neighbours.
    """
    with np.errstate(over="ignore"):  # wrap-around arithmetic is what is meant
        states = _mix(ids.astype(np.uint64) * GOLDEN + np.uint64(key))
        return _mix(states[:, None] + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
