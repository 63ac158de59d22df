"""The sampler that suggests the next trial, and wrappers: powers of two, learning from pruned trials, no point twice.

The defaults are the best ones of the measurements in docs/search.md.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bigstep.errors import ConfigError
from bigstep.search.powers_of_two import PowersOfTwoSampler
from bigstep.search.space import is_inside

__all__ = ["AUTO", "MAX_FITTED", "NoRepeatSampler", "PrunedTrialsSampler", "best_and_newest", "choose_sampler"]

AUTO = {"planned": "gp", "full": "tpe", "several": "tpe"}
NUM_RANDOM = 5  # trials before a model is fitted to them
MIN_DISTANCE = 0.01  # of each range: a nearer point counts as the same
MAX_FITTED = 200  # trials that a Gaussian process is fitted to: the time grows with the cube of their number
MAX_DRAWS = 20  # of a random point, until it is new


def choose_sampler(name: str, *, seed: int, space: str, num_objectives: int, study_seed: int = 0) -> BaseSampler:
    """Create the sampler for one trial; each trial gets its own, so that a search continues identically after a kill.

    Args:
        name: as ``search.sampler``.
        seed: for this trial.
        space: ``planned`` or ``full``.
        num_objectives: number of objectives of the study.
        study_seed: the same for all trials: the points of ``qmc`` are one sequence.

    Raises:
        ConfigError: the sampler does not support the space or the number of objectives.
    """
    if name == "auto":
        name = AUTO["several" if num_objectives > 1 else space]
    if name == "cmaes" and (num_objectives > 1 or space == "full"):
        raise ConfigError(
            f"search.sampler: expected one objective and the planned space for cmaes, got space {space} and "
            f"{num_objectives} objective{'s' * (num_objectives > 1)}; use tpe or auto"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "qmc":
            return PowersOfTwoSampler(optuna.samplers.QMCSampler(seed=study_seed, scramble=True))
        first = _make(name, seed)
        return first if name == "random" else NoRepeatSampler(first, _make("tpe", seed), _make("random", seed))


def _make(name: str, seed: int) -> BaseSampler:
    return PowersOfTwoSampler(_make_plain(name, seed))


def _make_plain(name: str, seed: int) -> BaseSampler:
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=NUM_RANDOM)
    if name == "gp":
        return PrunedTrialsSampler(lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=NUM_RANDOM))
    if name == "cmaes":
        return optuna.samplers.CmaEsSampler(
            seed=seed, n_startup_trials=1, consider_pruned_trials=True, warn_independent_sampling=False
        )
    return optuna.samplers.RandomSampler(seed=seed)


@final
class PrunedTrialsSampler(BaseSampler):
    """A Gaussian process that learns from all trials.

    Optuna's uses finished trials only, and so suggests the same bad point again and again if it is pruned: here pruned
    trials count with the last value that they reported. Optuna's also fails if one trial has a constraint that another
    lacks: here a missing constraint counts as satisfied. Of more than ``MAX_FITTED`` trials the best and the newest count.
    """

    def __init__(self, make: Callable[[], BaseSampler]) -> None:
        """Create the inner samplers with ``make``.

        There are two, one for the study and one for a view of it: a sampler remembers the id of the first study that it
        sees and refuses any other.
        """
        self._inner, self._on_view = make(), make()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the dimensions that all trials share."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Suggest a point from all trials so far."""
        del trial
        view = optuna.create_study(directions=study.directions, sampler=self._on_view)
        telling = [item for item in study.get_trials(deepcopy=False) if _is_telling(item, search_space)]
        view.add_trials(_as_complete(best_and_newest(telling, study.directions[0]), search_space))
        with _one_thread():
            return view.ask(dict(search_space)).params if search_space else {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Suggest one value, if there are no trials to learn from."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread: the matrices are small (a row per trial), and more threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_telling(trial: FrozenTrial, names: Sequence[str] | dict[str, BaseDistribution]) -> bool:
    ended = trial.state == TrialState.COMPLETE or (trial.state == TrialState.PRUNED and bool(trial.intermediate_values))
    known = (ended or trial.state == TrialState.RUNNING) and all(name in trial.params for name in names)
    return known and is_inside(trial, names)


def best_and_newest(trials: list[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """Return at most :data:`MAX_FITTED` trials, in their order: half the best by their first objective, half the newest."""
    if len(trials) <= MAX_FITTED:
        return trials
    older, newest = trials[: -MAX_FITTED // 2], trials[-MAX_FITTED // 2 :]
    sign = -1 if direction == StudyDirection.MAXIMIZE else 1
    ended = [trial for trial in older if trial.state != TrialState.RUNNING]
    best = sorted(ended, key=lambda trial: (sign * _values(trial)[0], trial.number))[: MAX_FITTED // 2]
    return [*sorted(best, key=lambda trial: trial.number), *newest]


def _as_complete(trials: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution]) -> list[FrozenTrial]:
    names = dict.fromkeys(name for trial in trials for name in trial.constraints)
    return [
        optuna.trial.create_trial(
            state=TrialState.RUNNING if trial.state == TrialState.RUNNING else TrialState.COMPLETE,
            values=None if trial.state == TrialState.RUNNING else _values(trial),
            params={name: trial.params[name] for name in space},
            distributions={name: trial.distributions[name] for name in space},
            constraints={name: trial.constraints.get(name, 0.0) for name in names} or None,
        )
        for trial in trials
    ]


def _values(trial: FrozenTrial) -> list[float]:
    return trial.values or [trial.intermediate_values[max(trial.intermediate_values)]]


@final
class NoRepeatSampler(BaseSampler):
    """Uses another sampler if the first suggests a point that was tried already.

    Samplers that fit a smooth model return to its minimum; training there again with the same seed brings nothing new.
    """

    def __init__(self, first: BaseSampler, second: BaseSampler, last: BaseSampler) -> None:
        """Use ``first``, or ``second`` if its point is not new, or ``last``, a few times, if that one is not new either."""
        self._samplers, self._last = (first, second), last

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the dimensions that all trials share."""
        return self._samplers[0].infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Suggest a new point."""
        known = [item.params for item in study.get_trials(deepcopy=False) if item.number != trial.number]
        for sampler in self._samplers:
            found = sampler.sample_relative(study, trial, search_space)
            if not any(_is_near(found, point, search_space) for point in known):
                return found
        for _ in range(MAX_DRAWS):
            found = {name: self._last.sample_independent(study, trial, name, kind) for name, kind in search_space.items()}
            if not any(_is_near(found, point, search_space) for point in known):
                break
        return found

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Suggest one value, if there are no trials to learn from."""
        return self._samplers[0].sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Prepare the first sampler for a trial."""
        self._samplers[0].before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass the result to the first sampler."""
        self._samplers[0].after_trial(study, trial, state, values)


def _is_near(point: Mapping[str, Any], known: Mapping[str, Any], names: Mapping[str, BaseDistribution]) -> bool:
    return bool(point) and all(
        name in known and _distance(point[name], known[name], kind) < MIN_DISTANCE for name, kind in names.items()
    )


def _distance(one: Any, other: Any, kind: BaseDistribution) -> float:
    """Return the distance of two values, as a share of their range."""
    if isinstance(kind, FloatDistribution | IntDistribution) and kind.high > kind.low:
        scale = math.log if kind.log else float
        return abs(scale(one) - scale(other)) / (scale(kind.high) - scale(kind.low))
    return 0.0 if one == other else 1.0
