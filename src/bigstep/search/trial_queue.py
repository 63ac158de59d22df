"""The queue of a study's trials: which are left, who works on them, and when the budget is used up.

Any number of workers on any number of machines use it at once, and all reach the same decisions from the study alone, since
Optuna numbers the trials: of live trials with the same key (an initial point, a retry, a replicate) the lowest number counts,
and live trials beyond the budget do not count. The worker of a trial that does not count drops it, so nothing is counted
twice, in any order of events. A worker that dies leaves its trial RUNNING; the first worker to notice ends the trial and
queues it again, to resume from its checkpoint.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bigstep.runtime.process_identity import is_alive, process_name
from bigstep.search.trial_record import SURPLUS, WORKER, TrialRecord

__all__ = [
    "HEARTBEAT_SECONDS",
    "RETRIES",
    "WORKER",
    "TrialQueue",
    "counts_toward_budget",
    "is_feasible",
    "not_failed",
    "sort_value",
    "value_of",
]

HEARTBEAT_SECONDS = 15.0
PATIENCE = 6 * HEARTBEAT_SECONDS  # seconds without a heartbeat after which a worker of another machine counts as dead
POLL_SECONDS = 0.5
CLAIM_GRACE_SECONDS = 10.0  # a trial gets its worker's name right after its number
RETRIES = 1  # of a trial whose worker was killed; a trial that was stopped by a signal is requeued without limit
LIVE = (TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE, TrialState.PRUNED)


def not_failed(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that did not fail."""
    return [trial for trial in trials if trial.state in LIVE]


def is_feasible(trial: FrozenTrial) -> bool:
    """Return whether all constraints hold."""
    return all(value <= 0 for value in trial.constraints.values())


def counts_toward_budget(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count toward the budget: feasible ones that are trained, running or waiting."""
    return [trial for trial in not_failed(trials) if is_feasible(trial)]


def _num_asked(trials: Iterable[FrozenTrial]) -> int:
    """Count the trials that were asked for: without those that retry another, and those dropped beyond the budget."""
    records = map(TrialRecord.read, trials)
    return sum(record.origin is None and record.failed is None for record in records)


def _drawn(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters without those of a single possible value: a plan of now may fix others."""
    return {name: value for name, value in trial.params.items() if not trial.distributions[name].single()}


def value_of(trial: FrozenTrial) -> float:
    """Return the first objective's value."""
    return float(trial.values[0])


def sort_value(value: float, direction: StudyDirection) -> float:
    """Return a key for a value of an objective: the better one sorts first."""
    return -value if direction == StudyDirection.MAXIMIZE else value


@final
@dataclass
class TrialQueue:
    """One worker's view of a study.

    ``max_asks`` limits all trials, infeasible and failed ones included. Workers count as dead by ``clock``, in seconds.
    """

    study: optuna.Study
    budget: int
    max_asks: int
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    seen: dict[int, tuple[str, float]] = field(default_factory=dict)

    def enqueue_once(self, key: str, params: Mapping[str, Any], record: TrialRecord) -> None:
        """Queue a trial, unless a live one has its key."""
        if not any(TrialRecord.read(trial).key == key for trial in not_failed(self.trials())):
            self.study.enqueue_trial(dict(params), user_attrs=replace(record, key=key).attributes)

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, by number."""
        return self.study.get_trials(deepcopy=False)

    def take(self, sampler: Callable[[int], optuna.samplers.BaseSampler] | None) -> optuna.Trial | None:
        """Return a waiting trial or, with a ``sampler`` (for the number of trials so far), a new one; None: nothing is left."""
        trials = self.trials()
        waits = any(trial.state == TrialState.WAITING for trial in trials)
        if not waits and (
            sampler is None or len(counts_toward_budget(trials)) >= self.budget or _num_asked(trials) >= self.max_asks
        ):
            return None
        if sampler is not None:
            self.study.sampler = sampler(len(trials))
        trial = self.study.ask()
        TrialRecord(worker=process_name()).write(trial)
        if self._is_surplus(trial, is_new=sampler is not None):
            TrialRecord(failed=SURPLUS).write(trial)
            self.fail(trial.number)
            return self.take(sampler)
        return trial

    def heartbeat(self, trial: optuna.Trial) -> None:
        """Record that the trial's worker is alive."""
        TrialRecord(heartbeat=f"{time.time():.0f}").write(trial)

    def reclaim_dead(self) -> list[int]:
        """End trials whose worker is dead, requeue each if it has retries left, and return their numbers."""
        ended = []
        for trial in self._running():
            if self._is_gone(trial) and self.fail(trial.number):
                self.requeue(trial, RETRIES)
                ended.append(trial.number)
        return ended

    def settle(self) -> None:
        """End what dead workers left RUNNING, including trials whose worker died before it wrote its name."""
        deadline = self.clock() + CLAIM_GRACE_SECONDS + 2 * POLL_SECONDS
        self.reclaim_dead()
        while self.clock() < deadline and any(TrialRecord.read(trial).worker is None for trial in self._running()):
            self.sleep(POLL_SECONDS)
            self.reclaim_dead()

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING]

    def requeue(self, trial: FrozenTrial, retries: int | None = None) -> None:
        """Queue a trial that did not finish again, to resume from its checkpoint; at most ``retries`` times."""
        record = TrialRecord.read(trial)
        tries = record.retries or 0
        params = {**trial.system_attrs.get("fixed_params", {}), **_drawn(trial)}
        if not params or (retries is not None and tries >= retries):
            return
        origin = trial.number if record.origin is None else record.origin
        again = replace(record, worker=None, heartbeat=None, failed=None, origin=origin, retries=tries + (retries is not None))
        self.enqueue_once(record.key or f"again-{trial.number}", params, again)

    def fail(self, number: int) -> bool:
        """Mark a trial as failed; False if it has ended already."""
        try:
            self.study.tell(number, state=TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            return False
        return True

    def _is_surplus(self, trial: optuna.Trial, *, is_new: bool) -> bool:
        before = [item for item in self.trials() if item.number < trial.number]
        key = TrialRecord.read(trial).key
        if key is not None:
            return any(TrialRecord.read(item).key == key for item in not_failed(before))
        return not is_new or len(counts_toward_budget(before)) >= self.budget

    def _is_gone(self, trial: FrozenTrial) -> bool:
        record = TrialRecord.read(trial)
        alive = None if record.worker is None else is_alive(record.worker)
        if alive is not None:
            return not alive
        sign, now = f"{record.worker} {record.heartbeat}", self.clock()
        before, since = self.seen.get(trial.number, (None, now))
        if sign != before:
            self.seen[trial.number] = (sign, now)
            return False
        return now - since > (PATIENCE if record.worker else CLAIM_GRACE_SECONDS)
