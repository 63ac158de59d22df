"""A worker of a search: takes trials from the study and trains them, until the study needs no more.

Any number of workers, here and on other machines, run this on the same study; what is still to do follows from the study
alone (`bigstep.search.trial_queue`).
"""

import contextlib
import json
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import optuna
from optuna.trial import TrialState

from bigstep.config.params import Params
from bigstep.config.search import OBJECTIVES
from bigstep.console import console
from bigstep.data.store import Store
from bigstep.errors import UserError
from bigstep.memory.measurement import resident_bytes
from bigstep.project.parameters import check_params
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.stop_signals import Signals, StoppedError
from bigstep.search.confirmation import Again, audits, best_trials, replicates
from bigstep.search.patience import patiently
from bigstep.search.samplers import choose_sampler
from bigstep.search.space import Space, build_space
from bigstep.search.storage import STORAGE_ERRORS, first_line, open_storage, open_study
from bigstep.search.trial_queue import BEAT, KEY, RETRIES, Ledger, counted, live
from bigstep.search.workers.trial_runner import Conductor
from bigstep.stages.starting import ensure_noise_start

__all__ = ["SearchRequest", "Worker", "finish_name", "has_ended", "main", "open_ledgers", "things_to_do_again"]

T = TypeVar("T")
POLL = 0.5  # seconds between two looks at a study whose trials others train
ASKS = 10  # times the budget: infeasible ones cost nothing but must end


@dataclass(frozen=True)
class SearchRequest:
    """What a worker needs to know; plain values."""

    root: str
    prepared: str
    content: dict[str, Any]
    """Of params.yaml, with this worker's share of threads and memory."""
    address: str
    """Of the study's storage."""
    uri: str
    experiment: str
    experiment_id: str
    parent_run: str
    reason: str
    """Why training is not slice-invariant; empty where it is."""
    largest: int | None
    """Exponent of the largest micro-batch that fits; None where it is planned."""
    until: float
    """Seconds since the epoch after which no trial is begun."""


def main() -> int:
    """Read a request from standard input, and work until nothing is left to do or the process is told to stop."""
    request = SearchRequest(**json.load(sys.stdin))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    signals = Signals()
    try:
        with signals.watched(), signals.deferred():
            Worker(request, signals).work()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except StoppedError as stop:
        return stop.exit_code
    return 0


def finish_name(study: str) -> str:
    """Name the study of what is trained again."""
    return f"{study}-again"


def open_ledgers(params: Params, address: str) -> tuple[Ledger, Ledger]:
    """Open the study and that of what is trained again, which are begun where there are none."""
    search, storage = params.search, open_storage(address)
    directions = [OBJECTIVES[name] for name in search.objectives]
    first = open_study(storage, search.study, directions)
    again = open_study(storage, finish_name(search.study), directions[:1])
    for study, names in ((first, search.objectives), (again, search.objectives[:1])):
        if study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(names))
    pruning = search.pruner == "median" and len(directions) == 1
    first.pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_min_trials=4) if pruning else optuna.pruners.NopPruner()
    return Ledger(first, search.trials, ASKS * search.trials), Ledger(again, 0, 0)


@final
class Worker:
    """Works on one study."""

    def __init__(self, request: SearchRequest, signals: Signals) -> None:
        """Open the study that ``request`` names."""
        self.request, self.signals = request, signals
        self.params = check_params(request.content)
        self.first, self.again = self._patiently(lambda: open_ledgers(self.params, request.address))
        self.store = Store(Path(request.prepared))
        project = ProjectPaths(Path(request.root))
        self.space = build_space(self.params, request.reason).cut(request.largest)
        self.deadline = time.monotonic() + request.until - time.time()  # the clock may be set meanwhile
        self.conductor = Conductor(project, self.store, request, self.space, signals, resident_bytes())

    def work(self) -> None:
        """Train what the search needs, then what is to be trained again.

        Raises:
            StoppedError: the process was told to stop; its trial is back in the queue, to go on from its checkpoint.
        """
        for trial in self._take(self.first, is_first=True):
            self._hold(self.first, trial, lambda trial=trial: self.conductor.search(self.first.study, trial))
        self._patiently(self._ensure_again)
        for trial in self._take(self.again, is_first=False):
            self._hold(
                self.again,
                trial,
                lambda trial=trial: self.conductor.again(self.first.study, self.again.study, trial),
            )

    def _take(self, ledger: Ledger, *, is_first: bool) -> Iterator[optuna.Trial]:
        while True:
            trial, waits = self._patiently(lambda: self._next(ledger, is_first=is_first))
            if trial is not None:
                yield trial
            elif waits:
                time.sleep(POLL)
            else:
                return

    def _next(self, ledger: Ledger, *, is_first: bool) -> tuple[optuna.Trial | None, bool]:
        """Take a trial; where there is none, tell whether others still train."""
        for number in ledger.sweep():
            console.print(f"trial {number} of {ledger.study.study_name}: its worker is gone")
        if is_first:
            ensure_noise_start(ledger, self.space)
        in_time = time.monotonic() < self.deadline or not is_first
        trial = ledger.claim(self._sampler if is_first else None) if in_time else None
        return trial, trial is None and any(item.state == TrialState.RUNNING for item in ledger.trials())

    def _hold(self, ledger: Ledger, trial: optuna.Trial, train: Any) -> None:
        """Train with signs of life; a trial that is stopped goes back into the queue."""
        try:
            with beating(ledger, trial):
                train()
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            frozen = ledger.trials()[trial.number]
            if ledger.fail(trial.number):
                ledger.put_back(frozen, RETRIES)
                raise
            console.print(f"trial {trial.number} was taken from this worker, which gave no sign of life; another has it now")
        except StoppedError:
            with contextlib.suppress(*STORAGE_ERRORS):  # the next start sees that this worker is gone
                self._give_back(ledger, trial.number)
            raise
        except STORAGE_ERRORS as error:
            console.print(f"trial {trial.number} goes back into the queue: the study's storage failed ({first_line(error)})")
            self._patiently(lambda: self._give_back(ledger, trial.number))
        except Exception:
            frozen = ledger.trials()[trial.number]
            if ledger.fail(trial.number):
                ledger.put_back(frozen, RETRIES)
            raise

    def _give_back(self, ledger: Ledger, number: int) -> None:
        """Put a trial into the queue again, unless it has ended."""
        frozen = ledger.trials()[number]
        if ledger.fail(number):
            ledger.put_back(frozen)

    def _patiently(self, action: Callable[[], T]) -> T:
        return patiently(action, self.request.address, check=self.signals.raise_if_told)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        search = self.params.search
        seed = (search.seed * 1_000_003 + number) % 2**31
        asked = {"seed": seed, "study_seed": search.seed, "num_objectives": len(search.objectives)}
        return choose_sampler(search.sampler, space=self.space.kind, **asked)

    def _ensure_again(self) -> None:
        for number, item in enumerate(things_to_do_again(self.params, self.space, self.first)):
            self.again.ensure(item.key, {"item": number}, item.attributes)


def things_to_do_again(params: Params, space: Space, first: Ledger) -> list[Again]:
    """Give what a search that has ended trains again: the same for whoever asks."""
    search, trials = params.search, first.trials()
    is_smaller_better = OBJECTIVES[search.objectives[0]] == "minimize"
    best = best_trials(trials, search.top, smaller_is_better=is_smaller_better) if len(search.objectives) == 1 else []
    seed = params.train.seed
    return [
        *(replicates(best, search, seed)),
        *(audits(trials, search, seed) if space.kind == "planned" else []),
    ]


def has_ended(params: Params, space: Space, ledgers: tuple[Ledger, Ledger]) -> bool:
    """Tell whether nothing is left to train."""
    first, again = ledgers
    waits = any(not trial.state.is_finished() for ledger in ledgers for trial in ledger.trials())
    if waits or len(counted(first.trials())) < params.search.trials:
        return False
    done = {trial.user_attrs.get(KEY) for trial in live(again.trials())}
    return all(item.key in done for item in things_to_do_again(params, space, first))


@contextmanager
def beating(ledger: Ledger, trial: optuna.Trial) -> Iterator[None]:
    """Give signs of life while the block runs."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            with contextlib.suppress(optuna.exceptions.OptunaError, OSError, *STORAGE_ERRORS):  # it may be another's by now
                ledger.beat(trial)

    thread = threading.Thread(target=beat, name="bigstep-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
