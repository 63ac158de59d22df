"""What a search tries first: the baseline, points by scaling rules and the noise scale, the best of another study."""

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from bigstep.config.former_keys import new_values
from bigstep.config.params import Params
from bigstep.errors import ConfigError
from bigstep.optuna_mlflow.study_identity import storage_of
from bigstep.search.space import EFFECTIVE, RATE, Space, nearest_value, plain_values
from bigstep.search.trial_queue import TrialQueue, counts_toward_budget, not_failed, sort_value, value_of
from bigstep.search.trial_record import TrialRecord

__all__ = ["FIRST", "NOISY", "SLOPE", "ensure_noise_start", "ensure_starts", "noise_point", "start_points"]

SLOPE = 1 / 3  # of the best log learning rate over the log effective batch, as measured on published grids
FACTOR = 4  # from the current effective batch: four times more or less
FIRST = "start-0"  # key of the current parameters
NOISY = "start-noise"


def start_points(current: Mapping[str, Any], dimensions: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Return the points by the scaling rule on both sides of ``current``: a quarter of its effective batch, and four times it.

    In published grids the best learning rate grows with the batch size with a slope around one third, less than the
    square-root rule (medians of 33 grids: 0.32 and 0.40); the search finds which side is better.
    """
    if EFFECTIVE not in dimensions:
        return []
    moved = (_moved(current, size, dimensions) for size in (current[EFFECTIVE] // FACTOR, current[EFFECTIVE] * FACTOR))
    return [point for point in moved if point[EFFECTIVE] != current[EFFECTIVE]]


def noise_point(
    current: Mapping[str, Any], dimensions: Mapping[str, BaseDistribution], noise_scale: float | None
) -> dict[str, Any] | None:
    """Return the point by the scaling rule whose effective batch is nearest to the gradient noise scale.

    Args:
        current: the point at which the noise scale was measured.
        dimensions: of the space.
        noise_scale: in samples; None: unknown.

    Returns:
        The point; None if the noise scale is unknown, or an initial point has this effective batch already.
    """
    if noise_scale is None or EFFECTIVE not in dimensions:
        return None
    point = _moved(current, 2 ** round(math.log2(max(noise_scale, 1.0))), dimensions)
    tried = {current[EFFECTIVE], *(item[EFFECTIVE] for item in start_points(current, dimensions))}
    return None if point[EFFECTIVE] in tried else point


def _moved(current: Mapping[str, Any], size: int, dimensions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Return the point of another effective batch, with the learning rate by the rule, within the ranges.

    ``current`` may have planned sizes beside the dimensions; they belong to its own effective batch.
    """
    batches, rates = dimensions[EFFECTIVE], dimensions[RATE]
    assert isinstance(batches, IntDistribution)
    assert isinstance(rates, FloatDistribution)
    moved = min(max(size, batches.low), batches.high)
    scaled = current[RATE] * (moved / current[EFFECTIVE]) ** SLOPE
    point = {name: value for name, value in current.items() if name in dimensions}
    return {**point, EFFECTIVE: moved, RATE: min(max(scaled, rates.low), rates.high)}


def ensure_starts(ledger: TrialQueue, params: Params, space: Space, warm_start: str | None) -> None:
    """Queue the initial points: the baseline, those by the scaling rule, and the best of another study."""
    exact = {"train.learning_rate": params.train.learning_rate, "train.effective_batch_size": params.batch.effective_batch_size}
    if space.kind == "full":
        exact["hardware.micro_batch_size"] = params.batch.micro_batch_size
    current = space.point(params)
    points = [*start_points(current, space.dimensions), *_best_of(ledger, space, warm_start, current)]
    ledger.enqueue_once(FIRST, current, TrialRecord(start=0, exact=exact))
    for number, point in enumerate(points[: params.search.trials - 1], 1):
        ledger.enqueue_once(f"start-{number}", point, TrialRecord(start=number))


def _best_of(ledger: TrialQueue, space: Space, warm_start: str | None, current: dict[str, Any]) -> list[dict[str, Any]]:
    if warm_start is None:
        return []
    storage = storage_of(ledger.study)
    names = optuna.get_all_study_names(storage)
    if warm_start not in names:
        raise ConfigError(f"--warm-start: no study {warm_start!r} in this storage; available: {', '.join(names)}")
    study = optuna.load_study(study_name=warm_start, storage=storage)
    done = [trial for trial in not_failed(study.get_trials(deepcopy=False)) if trial.values]
    direction = study.directions[0]
    best = sorted(done, key=lambda trial: (sort_value(value_of(trial), direction), trial.number))[:3]
    points = [plain_values(new_values(trial.params)) for trial in best]
    return [
        {name: nearest_value(kind, point.get(name, current[name])) for name, kind in space.dimensions.items()}
        for point in points
    ]


def ensure_noise_start(ledger: TrialQueue, space: Space) -> None:
    """Queue the point at the noise scale that the first trial measured, if the budget is not used up."""
    trials = ledger.trials()
    known = {TrialRecord.read(trial).key: trial for trial in not_failed(trials)}
    first = known.get(FIRST)
    if (
        NOISY in known
        or first is None
        or first.state != TrialState.COMPLETE
        or len(counts_toward_budget(trials)) >= ledger.budget
    ):
        return
    point = noise_point(first.params, space.dimensions, TrialRecord.read(first).noise_scale)
    if point is not None:
        ledger.enqueue_once(NOISY, point, TrialRecord(start="noise scale"))
