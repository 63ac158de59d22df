"""A wrapper around any sampler, for batch sizes that are plain values and powers of two."""

import math
from collections.abc import Sequence
from typing import Any, final

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from bigstep.search.space import ACCUMULATION, EFFECTIVE, MICRO

__all__ = ["PowersOfTwoSampler"]

SIZES = (EFFECTIVE, MICRO, ACCUMULATION)
TOLERANCE = 1e-9  # of a logarithm: a power of two stays what it is


@final
class PowersOfTwoSampler(BaseSampler):
    """Makes batch sizes powers of two, and hides parameters with a single possible value from another sampler.

    A planned size has one value, another one in each trial: for Optuna it would be a dimension of its own.
    """

    def __init__(self, inner: BaseSampler) -> None:
        """Use ``inner`` for the suggestions."""
        self._inner = inner

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the dimensions that all trials share and that have more than one value."""
        found = self._inner.infer_relative_search_space(study, trial)
        return {name: kind for name, kind in found.items() if not kind.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Suggest a point."""
        found = self._inner.sample_relative(study, trial, search_space)
        return {name: _rounded(name, value, search_space[name]) for name, value in found.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Suggest one value."""
        found = self._inner.sample_independent(study, trial, param_name, param_distribution)
        return _rounded(param_name, found, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Pass the start of a trial on."""
        self._inner.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass the result on."""
        self._inner.after_trial(study, trial, state, values)


def _rounded(name: str, value: Any, kind: BaseDistribution) -> Any:
    """Return the power of two in whose share of the range a batch size lies: shares are equal, those of both ends too."""
    if name not in SIZES or not isinstance(kind, IntDistribution) or kind.single():
        return value
    low, high = round(math.log2(kind.low)), round(math.log2(kind.high))
    share = (math.log2(value) - low) / (high - low) * (high - low + 1)
    return 2 ** (low + min(max(math.floor(share + TOLERANCE), 0), high - low))
