"""Points that are tried first: hints by scaling rules, never more than that."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from bigstep.search.space import EFFECTIVE, RATE

__all__ = ["SLOPE", "start_points"]

SLOPE = 1 / 3  # of the best log learning rate over the log effective batch, as measured on published grids
APART = 2  # exponents of the effective batch from the current one


def start_points(current: Mapping[str, Any], dimensions: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Give the points along the scaling rule on both sides of ``current``: four times less and four times more.

    Published grids of the best learning rate over batch size have slopes around one third, between the square-root rule and
    none (0.32 and 0.40 in the medians of 33 grids); which side is better is for the search to find.
    """
    exponent, rate = dimensions.get(EFFECTIVE), dimensions[RATE]
    if not isinstance(exponent, IntDistribution) or not isinstance(rate, FloatDistribution):
        return []
    found = []
    for shift in (-APART, APART):
        moved = min(max(current[EFFECTIVE] + shift, exponent.low), exponent.high)
        if moved != current[EFFECTIVE]:
            scaled = current[RATE] * 2 ** (SLOPE * (moved - current[EFFECTIVE]))
            found.append({**current, EFFECTIVE: moved, RATE: min(max(scaled, rate.low), rate.high)})
    return found
