"""The search space: the dimensions that a sampler sees, and the parameters of a point in it.

Batch sizes are plain values, so that Optuna's pages show them as they are; `bigstep.search.samplers` keeps them powers of two.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.params import Params
from bigstep.config.search import Range
from bigstep.errors import ConfigError

__all__ = [
    "ACCUMULATION",
    "EFFECTIVE",
    "EXPONENTS",
    "MICRO",
    "RATE",
    "Space",
    "build_space",
    "is_inside",
    "nearest_value",
    "plain_values",
    "powers_of_two",
]

RATE = "train.learning_rate"
EFFECTIVE, MICRO, ACCUMULATION = "effective_batch_size", "micro_batch_size", "accumulation_steps"
EXPONENTS = {  # names of an earlier version, which searched exponents of two
    "effective_batch_exponent": EFFECTIVE,
    "micro_batch_exponent": MICRO,
    "accumulation_exponent": ACCUMULATION,
}
RATE_FACTOR = 10.0  # default range of the learning rate: the current one divided and multiplied by this


@dataclass(frozen=True)
class Space:
    """The dimensions of a study.

    ``kind`` is ``planned`` (learning rate and effective batch) or ``full`` (learning rate, micro-batch, accumulation steps),
    and further parameters; ``reason`` says why it is not the configured one, if it is not.
    """

    kind: str
    dimensions: Mapping[str, BaseDistribution]
    reason: str = ""

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draw a point; an enqueued value is used as it is."""
        return {name: _suggest(trial, name, kind) for name, kind in self.dimensions.items()}

    def overrides(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of a point, as ``section.key``."""
        found = {name: value for name, value in point.items() if "." in name}
        if self.kind == "full":
            micro, steps = point[MICRO], point[ACCUMULATION]
            return {**found, "train.effective_batch_size": micro * steps, "hardware.micro_batch_size": micro}
        return {**found, "train.effective_batch_size": point[EFFECTIVE], "hardware.micro_batch_size": "auto"}

    def fix_planned(self, trial: optuna.Trial, batch: BatchSizes) -> None:
        """Record the sizes that follow from the point as parameters with a single possible value; no sampler draws them."""
        planned = {EFFECTIVE: batch.effective_batch_size, MICRO: batch.micro_batch_size, ACCUMULATION: batch.accumulation_steps}
        for name, value in planned.items():
            if name not in self.dimensions:
                trial.suggest_int(name, value, value, log=True)

    def cut(self, largest: int | None) -> "Space":
        """Return the space without micro-batches over ``largest``, which do not fit in memory."""
        kind = self.dimensions.get(MICRO)
        if largest is None or not isinstance(kind, IntDistribution):
            return self
        return replace(
            self, dimensions={**self.dimensions, MICRO: IntDistribution(kind.low, min(kind.high, largest), log=True)}
        )

    def point(self, params: Params) -> dict[str, Any]:
        """Return the point nearest to ``params``; its batch sizes are powers of two."""
        batch = params.batch
        known: dict[str, Any] = {
            EFFECTIVE: 2 ** round(math.log2(batch.effective_batch_size)),
            MICRO: 2 ** round(math.log2(batch.micro_batch_size)),
            ACCUMULATION: 2 ** round(math.log2(batch.accumulation_steps)),
        }
        values = {name: known[name] if name in known else _value(params, name) for name in self.dimensions}
        return {name: nearest_value(self.dimensions[name], value) for name, value in values.items()}


def build_space(params: Params, reason: str = "") -> Space:
    """Return the space that ``params.search`` describes.

    Args:
        params: the configuration.
        reason: why the micro-batch size must be searched; empty if training is slice-invariant.

    Raises:
        ConfigError: a range holds no power of two, or a parameter does not exist.
    """
    search = params.search
    kind = "full" if reason else search.space
    rate = params.train.learning_rate
    low, high = search.learning_rate or (rate / RATE_FACTOR, rate * RATE_FACTOR)
    found: dict[str, BaseDistribution] = {RATE: FloatDistribution(low, high, log=True)}
    if kind == "planned":
        found[EFFECTIVE] = powers_of_two("effective_batch_size", search.effective_batch_size)
    else:
        found[MICRO] = powers_of_two("micro_batch_size", search.micro_batch_size)
        found[ACCUMULATION] = powers_of_two("accumulation_steps", search.accumulation_steps)
    for name, range_ in search.parameters.items():
        _value(params, name)
        found[name] = _distribution(range_)
    return Space(kind, found, reason if search.space != kind else "")


def powers_of_two(name: str, limits: tuple[int, int]) -> IntDistribution:
    """Return the range from the lowest to the highest power of two within ``limits``, drawn evenly by exponent.

    Raises:
        ConfigError: there is no such value.
    """
    low, high = math.ceil(math.log2(limits[0])), math.floor(math.log2(limits[1]))
    if low > high:
        raise ConfigError(f"search.{name}: expected a range with a power of two, got {list(limits)}; widen it")
    return IntDistribution(2**low, 2**high, log=True)


def plain_values(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point with plain batch sizes; one of an earlier version holds exponents of two."""
    return {EXPONENTS.get(name, name): 2**value if name in EXPONENTS else value for name, value in point.items()}


def _distribution(found: Range | tuple[bool | int | float | str, ...]) -> BaseDistribution:
    if not isinstance(found, Range):
        return CategoricalDistribution(found)
    if isinstance(found.low, int) and isinstance(found.high, int):
        return IntDistribution(found.low, found.high, log=found.log)
    return FloatDistribution(float(found.low), float(found.high), log=found.log)


def _suggest(trial: optuna.Trial, name: str, kind: BaseDistribution) -> Any:
    if isinstance(kind, FloatDistribution):
        return trial.suggest_float(name, kind.low, kind.high, log=kind.log)
    if isinstance(kind, IntDistribution):
        return trial.suggest_int(name, kind.low, kind.high, log=kind.log)
    assert isinstance(kind, CategoricalDistribution)
    return trial.suggest_categorical(name, kind.choices)


def _value(params: Params, name: str) -> Any:
    section, _, key = name.partition(".")
    values = getattr(params, section)
    if key.startswith("options."):
        return _option(params, name)
    if key not in type(values).model_fields:
        raise ConfigError(f"search.parameters: expected keys of params.yaml, got {name}; see section {section}")
    return getattr(values, key)


def _option(params: Params, name: str) -> Any:
    options, key = params.model.options, name.removeprefix("model.options.")
    if key not in options:
        raise ConfigError(f"search.parameters: expected a key of model.options, got {name}; set it there, to where to start")
    return options[key]


def is_inside(trial: FrozenTrial, names: Iterable[str]) -> bool:
    """Return whether parameters of a trial are values of their dimensions: Optuna keeps a queued one that is not as it is."""
    return all(nearest_value(trial.distributions[name], trial.params[name]) == trial.params[name] for name in names)


def nearest_value(kind: BaseDistribution, value: Any) -> Any:
    """Return the value of a dimension that is nearest to another; of choices the first, if the other is not among them."""
    if isinstance(kind, CategoricalDistribution):
        return value if value in kind.choices else kind.choices[0]
    assert isinstance(kind, FloatDistribution | IntDistribution)
    inside = min(max(value if isinstance(value, int | float) else kind.low, kind.low), kind.high)
    return round(inside) if isinstance(kind, IntDistribution) else float(inside)
