"""Two models on the same samples: is the difference chance?"""

from collections.abc import Callable
from dataclasses import dataclass
from math import comb, erfc, sqrt

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "mcnemar", "paired_interval", "paired_score_interval"]

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


def paired_score_interval(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    score: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    seed: int = 0,
) -> Interval:
    """Return the difference of a score that is no mean over the samples, as F1, with its bootstrap interval.

    Args:
        first: numbers of each sample ``(n, k)``, of the model whose score is subtracted from.
        second: those of the other model for the same samples.
        score: from means over ``r`` sets of samples, ``(r, k)``, to their scores ``(r,)``.
        seed: of the resampling.
    """
    random, count, width = np.random.default_rng(seed), len(first), first.shape[1]
    both = np.concatenate([first, second], axis=1)
    rounds = max(1, 10_000_000 // max(count, 1))
    drawn: list[NDArray[np.float64]] = [both.mean(axis=0)[None]]
    for start in range(0, RESAMPLES, rounds):
        times = random.multinomial(count, np.full(count, 1 / count), size=min(rounds, RESAMPLES - start))
        drawn.append(times @ both / count)
    means = np.concatenate(drawn)
    differences = score(means[:, :width]) - score(means[:, width:])
    low, high = np.quantile(differences[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(differences[0]), float(low), float(high))


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
