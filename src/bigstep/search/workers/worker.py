"""A worker of a search: takes trials from the study and trains them until none is left.

Any number of workers, on any number of machines, may run on the same study; what is left to do depends only on the study
(`bigstep.search.trial_queue`).
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, final

import optuna
from optuna.trial import TrialState

from bigstep.console import console, show_log
from bigstep.data.store import Store
from bigstep.errors import UserError
from bigstep.memory.measurement import resident_bytes
from bigstep.project.parameters import check_params
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.environment import guard_libraries
from bigstep.runtime.stop_signals import Signals, StopRequestedError
from bigstep.search.confirmation import planned_reruns
from bigstep.search.initial_points import ensure_noise_start
from bigstep.search.patience import patiently
from bigstep.search.request import SearchRequest
from bigstep.search.samplers import choose_sampler
from bigstep.search.space import build_space
from bigstep.search.storage import STORAGE_ERRORS, first_line, is_outage, storage_is_gone
from bigstep.search.studies import open_ledgers
from bigstep.search.trial_queue import HEARTBEAT_SECONDS, RETRIES, TrialQueue
from bigstep.search.workers.trial_runner import TrialRunner

__all__ = ["Worker", "main"]

T = TypeVar("T")
POLL_SECONDS = 0.5  # while others train the remaining trials


def main() -> int:
    """Read a request from standard input, and work until nothing is left to do or a signal stops the process."""
    guard_libraries()
    request = SearchRequest(**json.load(sys.stdin))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    show_log()
    signals = Signals()
    try:
        with signals.watched(), signals.deferred():
            Worker(request, signals).work()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except StopRequestedError as stop:
        return stop.exit_code
    return 0


@final
class Worker:
    """Works on one study."""

    def __init__(
        self,
        request: SearchRequest,
        signals: Signals,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Open the study that ``request`` names; ``clock`` and ``sleep`` are for the deadline and for waiting."""
        self.request, self.signals = request, signals
        self._clock, self._sleep = clock, sleep
        self.params = check_params(request.content)
        self.first, self.again = self._patiently(lambda: open_ledgers(self.params, request.address))
        self.store = Store(Path(request.prepared))
        project = ProjectPaths(Path(request.root))
        self.space = build_space(self.params, request.reason).cut(request.largest)
        self.deadline = clock() + request.until - time.time()  # the clock may be changed meanwhile
        self.runner = TrialRunner(project, self.store, request, self.space, signals, resident_bytes())

    def work(self) -> None:
        """Train the trials of the search, then those that are retrained.

        Raises:
            StopRequestedError: a signal stopped the process; its trial is requeued and resumes from its checkpoint.
        """
        for trial in self._take(self.first, is_first=True):
            self._hold(self.first, trial, lambda trial=trial: self.runner.run_trial(self.first.study, trial))
        self._patiently(self._ensure_again)
        for trial in self._take(self.again, is_first=False):
            self._hold(
                self.again,
                trial,
                lambda trial=trial: self.runner.run_confirmation(self.first.study, self.again.study, trial),
            )

    def _take(self, ledger: TrialQueue, *, is_first: bool) -> Iterator[optuna.Trial]:
        while True:
            trial, waits = self._patiently(lambda: self._next(ledger, is_first=is_first))
            if trial is not None:
                yield trial
            elif waits:
                self._sleep(POLL_SECONDS)
            else:
                return

    def _next(self, ledger: TrialQueue, *, is_first: bool) -> tuple[optuna.Trial | None, bool]:
        """Return a trial, if there is one, and whether to wait for others that still train."""
        for number in ledger.reclaim_dead():
            console.print(f"trial {number} of {ledger.study.study_name}: its worker no longer exists")
        if is_first:
            ensure_noise_start(ledger, self.space)
        in_time = self._clock() < self.deadline or not is_first
        trial = ledger.take(self._sampler if is_first else None) if in_time else None
        return trial, trial is None and any(item.state == TrialState.RUNNING for item in ledger.trials())

    def _hold(self, ledger: TrialQueue, trial: optuna.Trial, train: Any) -> None:
        """Train while sending heartbeats; a trial that is stopped is requeued."""
        try:
            with sending_heartbeats(ledger, trial):
                train()
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            if self._give_back(ledger, trial.number, RETRIES):
                raise
            console.print(f"trial {trial.number} was reassigned: this worker's heartbeat timed out")
        except StopRequestedError:
            with contextlib.suppress(*STORAGE_ERRORS):  # the next start notices that this worker is dead
                self._give_back(ledger, trial.number)
            raise
        except STORAGE_ERRORS as error:
            if not is_outage(error):
                with contextlib.suppress(*STORAGE_ERRORS):  # it may refuse this, too
                    self._give_back(ledger, trial.number, RETRIES)
                raise storage_is_gone(self.request.address, error) from None
            console.print(f"trial {trial.number} is requeued: the study's storage failed ({first_line(error)})")
            self._patiently(lambda: self._give_back(ledger, trial.number))
        except Exception:
            self._give_back(ledger, trial.number, RETRIES)
            raise

    def _give_back(self, ledger: TrialQueue, number: int, retries: int | None = None) -> bool:
        """Requeue a trial, at most ``retries`` times, and return True, unless it has ended."""
        frozen = ledger.trials()[number]
        if not ledger.fail(number):
            return False
        ledger.requeue(frozen, retries)
        return True

    def _patiently(self, action: Callable[[], T]) -> T:
        return patiently(action, self.request.address, check=self.signals.raise_if_received)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        search = self.params.search
        seed = (search.seed * 1_000_003 + number) % 2**31
        asked = {"seed": seed, "study_seed": search.seed, "num_objectives": len(search.objectives)}
        return choose_sampler(search.sampler, space=self.space.kind, **asked)

    def _ensure_again(self) -> None:
        for number, item in enumerate(planned_reruns(self.params, self.space, self.first)):
            self.again.enqueue_once(item.key, {"item": number}, item.record)


@contextmanager
def sending_heartbeats(ledger: TrialQueue, trial: optuna.Trial, interval: float = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Send a heartbeat of a trial every ``interval`` seconds while the block runs."""
    done = threading.Event()

    def heartbeat() -> None:
        while not done.wait(interval):
            with contextlib.suppress(optuna.exceptions.OptunaError, OSError, *STORAGE_ERRORS):  # it may have been reassigned
                ledger.heartbeat(trial)

    thread = threading.Thread(target=heartbeat, name="bigstep-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    raise SystemExit(main())
