"""Two models on the same samples: is the difference chance?"""

from dataclasses import dataclass
from math import comb, erfc, sqrt

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "mcnemar", "paired_interval"]

RESAMPLES = 2000
LEVEL = 0.95
EXACT = 1000  # samples that only one model gets right, up to which the exact probability is computed


@dataclass(frozen=True)
class Interval:
    """A mean difference and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_interval(differences: NDArray[np.float64], seed: int = 0) -> Interval:
    """Return the mean of paired differences ``(n,)`` with its bootstrap interval over the samples."""
    random, count = np.random.default_rng(seed), len(differences)
    rounds = max(1, 10_000_000 // max(count, 1))
    means: list[float] = []
    while len(means) < RESAMPLES:
        drawn = random.integers(0, count, (min(rounds, RESAMPLES - len(means)), count))
        means += differences[drawn].mean(axis=1).tolist()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(differences.mean()), float(low), float(high))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the probability of a difference like this, or a larger one, between models that are equally good (McNemar, 1947).

    Args:
        only_first: samples that the first model gets right and the second does not.
        only_second: the other way round.
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    if count <= EXACT:
        tail = sum(comb(count, number) for number in range(fewer + 1))
        return min(1.0, float(2 * tail / 2**count))
    distance = max(0.0, (abs(only_first - only_second) - 1) / sqrt(count))
    return float(erfc(distance / sqrt(2)))  # both tails of the normal distribution
