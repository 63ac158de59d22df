"""Which trials there are, who works on them, and how many are still to do: the same for one worker and for many machines.

Optuna hands out numbers and nothing more. What follows from them here is decided alike by all who read the study: of live
trials with the same key (a start point, a retry, a replicate) the one with the lowest number counts, and of live trials beyond
the budget those with the highest numbers do not. Whoever holds such a trial gives it up, so nothing is counted twice
whatever the order of events. A worker that is gone leaves its trial RUNNING; whoever sees that first ends it, and puts it
back once, to go on from its checkpoint.
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

HEARTBEAT_SECONDS = 15.0  # seconds between two signs of life
PATIENCE = 6 * HEARTBEAT_SECONDS  # without one, a worker of another machine is gone
LOOK = 0.5  # seconds between two looks
CLAIM_GRACE_SECONDS = 10.0  # a trial gets its worker's name right after its number
RETRIES = 1  # of a trial whose worker was killed; one that was told to stop goes on as often as it takes
LIVE = (TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE, TrialState.PRUNED)


def not_failed(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that did not fail."""
    return [trial for trial in trials if trial.state in LIVE]


def is_feasible(trial: FrozenTrial) -> bool:
    """Tell whether no constraint is broken."""
    return all(value <= 0 for value in trial.constraints.values())


def counts_toward_budget(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count against the budget: those that are trained, were, or will be."""
    return [trial for trial in not_failed(trials) if is_feasible(trial)]


def value_of(trial: FrozenTrial) -> float:
    """Return the first objective's value; smaller is better only where the study minimizes."""
    return float(trial.values[0])


def sort_value(value: float, direction: StudyDirection) -> float:
    """Return a key for a value of an objective: the better one sorts first."""
    return -value if direction == StudyDirection.MAXIMIZE else value


@final
@dataclass
class TrialQueue:
    """One worker's view of a study; ``max_asks`` bounds what is asked for in all, infeasible trials included."""

    study: optuna.Study
    budget: int
    max_asks: int
    seen: dict[int, tuple[str, float]] = field(default_factory=dict)

    def enqueue_once(self, key: str, params: Mapping[str, Any], record: TrialRecord) -> None:
        """Put a trial into the queue, unless a live one has its key."""
        if not any(TrialRecord.read(trial).key == key for trial in not_failed(self.trials())):
            self.study.enqueue_trial(dict(params), user_attrs=replace(record, key=key).attributes)

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, by number."""
        return self.study.get_trials(deepcopy=False)

    def take(self, sampler: Callable[[int], optuna.samplers.BaseSampler] | None) -> optuna.Trial | None:
        """Take a trial that waits or, with a sampler (made for the number of trials so far), a new one; None: none is left."""
        trials = self.trials()
        waits = any(trial.state == TrialState.WAITING for trial in trials)
        if not waits and (
            sampler is None or len(counts_toward_budget(trials)) >= self.budget or len(not_failed(trials)) >= self.max_asks
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
        """Return a sign of life."""
        TrialRecord(heartbeat=f"{time.time():.0f}").write(trial)

    def reclaim_dead(self) -> list[int]:
        """End trials whose worker is gone, and put each back as often as it may; gives their numbers."""
        ended = []
        for trial in self._running():
            if self._is_gone(trial) and self.fail(trial.number):
                self.requeue(trial, RETRIES)
                ended.append(trial.number)
        return ended

    def settle(self) -> None:
        """End what dead workers left RUNNING, with those that died before their trial had their name."""
        deadline = time.monotonic() + CLAIM_GRACE_SECONDS + 2 * LOOK
        self.reclaim_dead()
        while time.monotonic() < deadline and any(TrialRecord.read(trial).worker is None for trial in self._running()):
            time.sleep(LOOK)
            self.reclaim_dead()

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING]

    def requeue(self, trial: FrozenTrial, retries: int | None = None) -> None:
        """Put a trial that did not end into the queue again, to go on from its checkpoint; at most ``retries`` times."""
        record = TrialRecord.read(trial)
        tries = record.retries or 0
        params = trial.params or trial.system_attrs.get("fixed_params", {})
        if not params or (retries is not None and tries >= retries):
            return
        origin = trial.number if record.origin is None else record.origin
        again = replace(record, worker=None, heartbeat=None, failed=None, origin=origin, retries=tries + (retries is not None))
        self.enqueue_once(record.key or f"again-{trial.number}", params, again)

    def fail(self, number: int) -> bool:
        """End a trial that did not end by itself; False where somebody else did."""
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
        sign, now = f"{record.worker} {record.heartbeat}", time.monotonic()
        before, since = self.seen.get(trial.number, (None, now))
        if sign != before:
            self.seen[trial.number] = (sign, now)
            return False
        return now - since > (PATIENCE if record.worker else CLAIM_GRACE_SECONDS)
