"""Points that are tried first: hints by scaling rules and the measured noise scale, never more than that."""

import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from bigstep.search.space import EFFECTIVE, RATE

__all__ = ["SLOPE", "noise_point", "start_points"]

SLOPE = 1 / 3  # of the best log learning rate over the log effective batch, as measured on published grids
APART = 2  # exponents of the effective batch from the current one


def start_points(current: Mapping[str, Any], dimensions: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Give the points along the scaling rule on both sides of ``current``: four times less and four times more.

    Published grids of the best learning rate over batch size have slopes around one third, between the square-root rule and
    none (0.32 and 0.40 in the medians of 33 grids); which side is better is for the search to find.
    """
    if EFFECTIVE not in dimensions:
        return []
    moved = (_moved(current, current[EFFECTIVE] + shift, dimensions) for shift in (-APART, APART))
    return [point for point in moved if point[EFFECTIVE] != current[EFFECTIVE]]


def noise_point(
    current: Mapping[str, Any], dimensions: Mapping[str, BaseDistribution], noise_scale: float | None
) -> dict[str, Any] | None:
    """Give the point along the scaling rule whose effective batch is nearest to the gradient noise scale.

    Args:
        current: the point that the noise scale was measured at.
        dimensions: of the space.
        noise_scale: in samples; None: not known.

    Returns:
        The point; None where nothing is known, or a start point is there already.
    """
    if noise_scale is None or EFFECTIVE not in dimensions:
        return None
    point = _moved(current, round(math.log2(max(noise_scale, 1.0))), dimensions)
    tried = {current[EFFECTIVE], *(item[EFFECTIVE] for item in start_points(current, dimensions))}
    return None if point[EFFECTIVE] in tried else point


def _moved(current: Mapping[str, Any], exponent: int, dimensions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Give the point of another effective batch, within the ranges, with the learning rate that the rule gives it."""
    batches, rates = dimensions[EFFECTIVE], dimensions[RATE]
    assert isinstance(batches, IntDistribution)
    assert isinstance(rates, FloatDistribution)
    moved = min(max(exponent, batches.low), batches.high)
    scaled = current[RATE] * 2 ** (SLOPE * (moved - current[EFFECTIVE]))
    return {**current, EFFECTIVE: moved, RATE: min(max(scaled, rates.low), rates.high)}
