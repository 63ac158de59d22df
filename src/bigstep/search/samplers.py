"""Which sampler of Optuna asks for the next trial; the defaults are those that docs/search.md measured."""

import warnings

import optuna
from optuna.samplers import BaseSampler

from bigstep.errors import ConfigError
from bigstep.search.asking import NoRepeatSampler, PrunedTrialsSampler

__all__ = ["AUTO", "choose_sampler"]

AUTO = {"planned": "gp", "full": "tpe", "several": "tpe"}
NUM_RANDOM = 5  # trials before a model of them is trusted


def choose_sampler(name: str, *, seed: int, space: str, num_objectives: int, study_seed: int = 0) -> BaseSampler:
    """Make the sampler for one ask; another is made for the next, so that a search goes on alike after a kill.

    Args:
        name: of search.sampler.
        seed: of this ask.
        space: ``planned`` or ``full``.
        num_objectives: of the study.
        study_seed: of all asks alike: the points of ``qmc`` are one sequence.

    Raises:
        ConfigError: the sampler cannot do what is asked.
    """
    if name == "auto":
        name = AUTO["several" if num_objectives > 1 else space]
    if name == "cmaes" and (num_objectives > 1 or space == "full"):
        raise ConfigError(
            "search.sampler cmaes must have one objective and no constraint, but the space is "
            f"{space} with {num_objectives} objectives; write tpe or auto"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "qmc":
            return optuna.samplers.QMCSampler(seed=study_seed, scramble=True)
        first = _make(name, seed)
        return first if name == "random" else NoRepeatSampler(first, _make("tpe", seed), _make("random", seed))


def _make(name: str, seed: int) -> BaseSampler:
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=NUM_RANDOM)
    if name == "gp":
        return PrunedTrialsSampler(lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=NUM_RANDOM))
    if name == "cmaes":
        return optuna.samplers.CmaEsSampler(
            seed=seed, n_startup_trials=1, consider_pruned_trials=True, warn_independent_sampling=False
        )
    return optuna.samplers.RandomSampler(seed=seed)
