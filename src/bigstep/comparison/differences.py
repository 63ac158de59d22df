"""What two runs did differently, and how their results differ."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bigstep.comparison.paired import Interval, mcnemar, paired_interval
from bigstep.comparison.result import Predictions, RunResult
from bigstep.console import format_score

__all__ = ["PairedResult", "RunDifference", "compare_runs"]

LEVEL = 0.05  # of McNemar's test
TINY = 1e-12  # of a probability
MINOR = ("hardware.", "tracking.", "search.")  # sections that decide no result


@dataclass(frozen=True)
class PairedResult:
    """Two classifiers on the same test samples; gains are those of the second one, positive where it is better."""

    num_samples: int
    only_first: int
    """Samples that only the first one gets right."""
    only_second: int
    accuracy: Interval
    loss: Interval | None
    p_value: float
    """McNemar's: of such a difference between models that are equally good."""
    classes: Mapping[str, int]
    """For each class, by how many samples more the second one is right."""

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the accuracies differ by more than the choice of test samples explains."""
        return self.p_value < LEVEL


@dataclass(frozen=True)
class RunDifference:
    """A run against another."""

    first: RunResult
    second: RunResult
    params: Mapping[str, tuple[str, str]]
    """Those that differ, by name: first and second value; those that decide the result come first."""
    metrics: Mapping[str, tuple[float, float]]
    paired: PairedResult | None
    """None where the test samples are others, or there are no classes."""

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the metrics as texts: name, first and second value."""
        return [(name, _shown(name, one), _shown(name, other)) for name, (one, other) in self.metrics.items()]

    @property
    def verdict(self) -> str:
        """The difference in a sentence."""
        if self.paired is None:
            return "not compared sample by sample: the runs have no predictions of classes for the same test samples"
        points, p_value = 100 * self.paired.accuracy.mean, self.paired.p_value
        low, high = 100 * self.paired.accuracy.low, 100 * self.paired.accuracy.high
        numbers = f"{points:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}, McNemar p = {p_value:.2g})"
        if not self.paired.is_beyond_chance:
            return f"no difference in test accuracy beyond chance: {numbers}"
        better = "better" if points > 0 else "worse"
        return f"{self.second.name} is {better} than {self.first.name} in test accuracy: {numbers}"


def compare_runs(first: RunResult, second: RunResult) -> RunDifference:
    """Compare ``second`` with ``first``."""
    names = sorted({*first.params, *second.params}, key=lambda name: (name.startswith(MINOR), name))
    values = {name: (first.params.get(name, "not there"), second.params.get(name, "not there")) for name in names}
    shared = [name for name in second.metrics if name in first.metrics]
    return RunDifference(
        first,
        second,
        {name: pair for name, pair in values.items() if pair[0] != pair[1]},
        {name: (first.metrics[name], second.metrics[name]) for name in shared},
        _pair(first.predictions, second.predictions),
    )


def _shown(name: str, value: float) -> str:
    return f"{value:,.0f}" if name.startswith("num_") or "epoch" in name else format_score(value)


def _pair(first: Predictions | None, second: Predictions | None) -> PairedResult | None:
    if first is None or second is None or first.p_actual is None or second.p_actual is None:
        return None
    if first.names != second.names or first.actual != second.actual:
        return None
    gain = second.is_right - first.is_right
    classes: Counter[str] = Counter()
    for name, value in zip(first.actual, gain, strict=True):
        classes[name] += int(value)
    nats = [-np.log(np.maximum(item, TINY)) for item in (first.p_actual, second.p_actual)]
    only_first, only_second = int((gain < 0).sum()), int((gain > 0).sum())
    return PairedResult(
        len(gain),
        only_first,
        only_second,
        paired_interval(gain),
        paired_interval(nats[0] - nats[1]),
        mcnemar(only_first, only_second),
        dict(classes),
    )
