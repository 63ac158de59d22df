"""The end of a search: the best trials are retrained with new seeds, and some with another micro-batch size.

The value of one seed is partly luck, and the best of many is mostly luck. So the winner is chosen by the mean over new seeds,
among the best trials and the baseline (the parameters that the search started with), all retrained with the same seeds.
"""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bigstep.config.params import Params
from bigstep.config.search import SearchConfig
from bigstep.search.space import Space
from bigstep.search.trial_queue import TrialQueue, counts_toward_budget, is_feasible, not_failed, sort_value, value_of
from bigstep.search.trial_record import TrialRecord

__all__ = [
    "Rerun",
    "SeedStatistics",
    "SlicingComparison",
    "audits",
    "best_trials",
    "compare",
    "has_ended",
    "planned_reruns",
    "replicates",
    "standings",
]

ROUNDING = 1e-9  # relative, of float64 over a whole training
CHAOS = 1e-3  # relative, in float32, if one seed gives no spread
SPREAD_SHARE = 0.3  # of the spread between seeds, by which two slicings may differ in float32


@dataclass(frozen=True)
class Rerun:
    """A configuration to train again: that of trial ``of``, with another seed or another ``micro_batch_size``."""

    kind: str
    of: int
    seed: int
    micro_batch_size: int | None = None

    @property
    def key(self) -> str:
        """A unique name."""
        return f"{self.kind}-{self.of}-{self.seed}"

    @property
    def record(self) -> TrialRecord:
        """What its trial records."""
        return TrialRecord(kind=self.kind, of=self.of, seed=self.seed, micro_batch_asked=self.micro_batch_size)


@dataclass(frozen=True)
class SeedStatistics:
    """The values of a configuration over new seeds."""

    of: int
    values: tuple[float, ...]
    seeds: tuple[int, ...] = ()
    """Of the values, ascending."""

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation between seeds; 0 for one, or with an infinite value, as studies of earlier versions may have."""
        return statistics.stdev(self.values) if len(self.values) > 1 and math.isfinite(self.mean) else 0.0


@dataclass(frozen=True)
class SlicingComparison:
    """One configuration with two micro-batch sizes; ``limit`` is the largest difference that counts as equal."""

    of: int
    micro_batch_sizes: tuple[int, int]
    values: tuple[float, float]
    limit: float
    in_float64: bool | None = None
    """Whether the first steps agree in float64, where they were tried because the values do not agree."""

    @property
    def holds(self) -> bool:
        """Whether the values agree."""
        return abs(self.values[0] - self.values[1]) <= self.limit


def best_trials(trials: Sequence[FrozenTrial], count: int, direction: StudyDirection) -> list[FrozenTrial]:
    """Return the best feasible trials that were trained to the end, best first, and the baseline."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE and is_feasible(trial) and not _diverged(trial)]
    ranked = sorted(done, key=lambda trial: (sort_value(value_of(trial), direction), trial.number))
    found = _distinct(ranked)[:count]
    first = [trial for trial in done if TrialRecord.read(trial).start == 0 and trial not in found]
    return found + (first if count else [])


def replicates(best: Sequence[FrozenTrial], search: SearchConfig, seed: int) -> list[Rerun]:
    """Return the trainings with new seeds; ``seed`` is that of the trials."""
    return [Rerun("replicate", trial.number, seed + 1 + number) for trial in best for number in range(search.confirm_seeds)]


def audits(trials: Sequence[FrozenTrial], search: SearchConfig, seed: int) -> list[Rerun]:
    """Draw the trials to retrain with another micro-batch size: a share, but at least one if there is another size."""
    able = [trial for trial in trials if _has_other(trial)] if search.audit_fraction else []
    count = min(len(able), math.ceil(search.audit_fraction * search.trials))
    chosen = random.Random(search.seed).sample(able, count)  # noqa: S311 # not for secrets
    return [Rerun("audit", trial.number, seed, _other(trial)) for trial in sorted(chosen, key=lambda item: item.number)]


def standings(best: Sequence[FrozenTrial], done: Sequence[FrozenTrial], direction: StudyDirection) -> list[SeedStatistics]:
    """Rank the configurations by the mean over their new seeds, best first; on a tie the lower number is first."""
    found = []
    for trial in best:
        again = sorted(
            (TrialRecord.read(item).seed or 0, value_of(item))
            for item in done
            if _is_of(item, "replicate", trial.number) and is_feasible(item)
        )
        if again:
            found.append(SeedStatistics(trial.number, tuple(value for _, value in again), tuple(seed for seed, _ in again)))
    return sorted(found, key=lambda item: (sort_value(item.mean, direction), item.of))


def compare(
    trials: Sequence[FrozenTrial], done: Sequence[FrozenTrial], spread: float, *, exact: bool
) -> list[SlicingComparison]:
    """Compare audits with the trials that they repeat; ``exact``: in float64, where only rounding may differ."""
    known = {trial.number: trial for trial in trials}
    found = []
    for item in done:
        record = TrialRecord.read(item)
        if record.kind == "audit" and record.of is not None and is_feasible(item):
            trial = known[record.of]
            values = value_of(trial), value_of(item)
            limit = ROUNDING * abs(values[0]) if exact else max(SPREAD_SHARE * spread, CHAOS * abs(values[0]))
            sizes = TrialRecord.read(trial).batch.micro_batch_size, record.batch.micro_batch_size
            found.append(SlicingComparison(trial.number, sizes, values, limit))
    return found


def _has_other(trial: FrozenTrial) -> bool:
    """Return whether a trial was trained with a micro-batch size that has another one."""
    is_trained = trial.state == TrialState.COMPLETE and is_feasible(trial) and not _diverged(trial)
    return is_trained and (TrialRecord.read(trial).effective_batch_size or 1) > 1


def _other(trial: FrozenTrial) -> int:
    """Return another micro-batch size: half, or the whole batch if it is 1."""
    batch = TrialRecord.read(trial).batch
    return -(-batch.micro_batch_size // 2) if batch.micro_batch_size > 1 else batch.effective_batch_size


def _distinct(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    found: dict[str, FrozenTrial] = {}
    for trial in trials:
        drawn = {name: value for name, value in trial.params.items() if not trial.distributions[name].single()}
        found.setdefault(repr(sorted(drawn.items())), trial)
    return list(found.values())


def _is_of(trial: FrozenTrial, kind: str, number: int) -> bool:
    record = TrialRecord.read(trial)
    return record.kind == kind and record.of == number


def _diverged(trial: FrozenTrial) -> bool:
    return bool(TrialRecord.read(trial).diverged)


def planned_reruns(params: Params, space: Space, first: TrialQueue) -> list[Rerun]:
    """Return what a finished search trains again; every worker gets the same list."""
    search, trials = params.search, first.trials()
    best = best_trials(trials, search.confirm_top, first.study.direction) if len(search.objectives) == 1 else []
    seed = params.train.seed
    return [
        *(replicates(best, search, seed)),
        *(audits(trials, search, seed) if space.kind == "planned" else []),
    ]


def has_ended(params: Params, space: Space, ledgers: tuple[TrialQueue, TrialQueue]) -> bool:
    """Return whether nothing is left to train."""
    first, again = ledgers
    waits = any(not trial.state.is_finished() for ledger in ledgers for trial in ledger.trials())
    if waits or len(counts_toward_budget(first.trials())) < params.search.trials:
        return False
    done = {TrialRecord.read(trial).key for trial in not_failed(again.trials())}
    return all(item.key in done for item in planned_reruns(params, space, first))
