"""What a search tries first: the current parameters, hints, and the best of an earlier study."""

from typing import Any

import optuna
from optuna.trial import TrialState

from bigstep.config.params import Params
from bigstep.errors import ConfigError
from bigstep.optuna_mlflow.study_identity import storage_of
from bigstep.search.initial_points import noise_point, start_points
from bigstep.search.space import Space
from bigstep.search.trial_queue import KEY, Ledger, counted, live
from bigstep.search.workers.trial_runner import NOISE

__all__ = ["ensure_noise_start", "ensure_starts"]

FIRST, NOISY = "start-0", "start-noise"  # keys


def ensure_starts(ledger: Ledger, params: Params, space: Space, prior: str | None) -> None:
    """Queue what is tried first: the current parameters, hints, and the best of an earlier study."""
    exact = {"train.learning_rate": params.train.learning_rate, "train.effective_batch_size": params.batch.effective_batch_size}
    if space.kind == "full":
        exact["hardware.micro_batch_size"] = params.batch.micro_batch_size
    current = space.point(params)
    points = [*start_points(current, space.dimensions), *_best_of(ledger, space, prior, current)]
    ledger.ensure(FIRST, current, {"start": 0, "exact": exact})
    for number, point in enumerate(points[: params.search.trials - 1], 1):
        ledger.ensure(f"start-{number}", point, {"start": number})


def _best_of(ledger: Ledger, space: Space, prior: str | None, current: dict[str, Any]) -> list[dict[str, Any]]:
    if prior is None:
        return []
    storage = storage_of(ledger.study)
    names = optuna.get_all_study_names(storage)
    if prior not in names:
        raise ConfigError(f"--prior must name a study of the same storage, but {prior!r} is none; there are {', '.join(names)}")
    study = optuna.load_study(study_name=prior, storage=storage)
    done = [trial for trial in live(study.get_trials(deepcopy=False)) if trial.values]
    sign = 1 if study.directions[0] == optuna.study.StudyDirection.MINIMIZE else -1
    best = sorted(done, key=lambda trial: (sign * trial.values[0], trial.number))[:3]
    return [{name: trial.params.get(name, current[name]) for name in space.dimensions} for trial in best]


def ensure_noise_start(ledger: Ledger, space: Space) -> None:
    """Queue the point at the noise scale that the first trial measured, once it has, if the budget is not used up."""
    trials = ledger.trials()
    known = {trial.user_attrs.get(KEY): trial for trial in live(trials)}
    first = known.get(FIRST)
    if NOISY in known or first is None or first.state != TrialState.COMPLETE or len(counted(trials)) >= ledger.budget:
        return
    point = noise_point(first.params, space.dimensions, first.user_attrs.get(NOISE))
    if point is not None:
        ledger.ensure(NOISY, point, {"start": "noise scale"})
