"""Whether the winner of a search beats the baseline beyond the spread of seeds, in words."""

import math
import statistics
from collections.abc import Sequence

from bigstep.console import format_score
from bigstep.search.confirmation import SeedStatistics

__all__ = ["verdict"]

LEVEL = 0.95


def verdict(standings: Sequence[SeedStatistics], winner: int, baseline: int) -> str:
    """Compare two configurations over the seeds that both were trained with, by a paired t interval.

    Args:
        standings: the values of each retrained configuration.
        winner: number of the winning trial.
        baseline: number of the trial of the parameters that the search started with.

    Returns:
        A sentence; empty if they were not retrained.
    """
    known = {item.of: item for item in standings}
    if winner not in known or baseline not in known:
        return ""
    if winner == baseline:
        return "no trial beats the baseline: the winner is the current params.yaml"
    first, second = (dict(zip(known[number].seeds, known[number].values, strict=True)) for number in (winner, baseline))
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    return _in_words(winner, differences, gap=known[winner].mean - known[baseline].mean)


def _in_words(winner: int, differences: Sequence[float], *, gap: float) -> str:
    """Return the sentence; ``gap`` is that of the means over all seeds, which made it the winner: its sign is the better."""
    if len(differences) < 2:
        return f"trial {winner} beats the baseline, but over fewer than two seeds it may be chance; raise search.confirm_seeds"
    mean, half = statistics.fmean(differences), _half_width(differences)
    low, high = mean - half, mean + half
    shown, lowest, highest = (format_score(value, "+") for value in (mean, low, high))
    found = f"{shown} over {len(differences)} paired seeds, 95 % interval {lowest} to {highest}"
    if low <= 0 <= high or mean * gap < 0:  # the latter where a retraining is still missing
        return f"trial {winner} does not beat the baseline beyond the spread of seeds: {found}"
    return f"trial {winner} beats the baseline beyond the spread of seeds: {found}"


def _half_width(differences: Sequence[float]) -> float:
    """Return half of the t interval's width (Student, 1908)."""
    from scipy.special import stdtrit

    count = len(differences)
    return float(stdtrit(count - 1, (1 + LEVEL) / 2)) * statistics.stdev(differences) / math.sqrt(count)
