"""The progress of a search on the screen."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import final

from optuna.trial import FrozenTrial, TrialState
from rich.live import Live
from rich.table import Table

from bigstep.config.params import Params
from bigstep.console import console, format_bytes, format_score, format_seconds
from bigstep.search.trial_queue import TrialQueue, counts_toward_budget, is_feasible, not_failed, sort_value, value_of
from bigstep.search.trial_record import SURPLUS, TrialRecord

__all__ = ["ProgressTable", "live_table"]

SHOWN = 12  # rows of the table
AGAIN = {"replicate": "new seed", "audit": "other slicing"}
COLUMNS = ("trial", "learning rate", "batch", "steps x micro-batch", "value", "samples/s", "memory", "state")


@contextmanager
def live_table() -> Iterator[Live | None]:
    """Yield a live display on a terminal; None if the output is not a terminal."""
    if not console.is_terminal:
        yield None
        return
    with Live(console=console, refresh_per_second=2, transient=True) as screen:
        yield screen


@final
class ProgressTable:
    """A line for each trial that ended and, on a terminal, a live table."""

    def __init__(
        self, params: Params, ledgers: tuple[TrialQueue, TrialQueue], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Show trials that end from now on, and the time left by ``clock``, in seconds."""
        self._params, self._ledgers, self._clock = params, ledgers, clock
        self._said = {(ledger.study.study_name, trial.number) for ledger in ledgers for trial in _ended(ledger.trials())}
        self._started, self._before = clock(), len(_ended(ledgers[0].trials()))

    def show(self, screen: Live | None) -> None:
        """Print a line for each trial that ended since the last call, and redraw the table."""
        for ledger in self._ledgers:
            for trial in _ended(ledger.trials()):
                key = (ledger.study.study_name, trial.number)
                if key not in self._said and TrialRecord.read(trial).failed != SURPLUS:
                    self._said.add(key)
                    console.print(_line(trial, self._params.search.objectives[0]))
        if screen is not None:
            screen.update(self._table())

    def _table(self) -> Table:
        first, again = self._ledgers
        trials = first.trials()
        done = [trial for trial in counts_toward_budget(trials) if trial.state.is_finished()]
        table = Table(
            title=f"{self._params.search.study}: {len(done)} of {self._params.search.trials} trials{self._left(len(done))}"
        )
        for name in COLUMNS:
            table.add_column(name, justify="right")
        rows = [trial for trial in not_failed([*trials, *again.trials()]) if trial.state != TrialState.WAITING]
        for trial in rows[-SHOWN:]:
            table.add_row(*_cells(trial))
        best, new = _best(first), [trial for trial in again.trials() if trial.state == TrialState.COMPLETE]
        parts = [] if best is None else [f"best so far: trial {best.number}, {format_score(best.values[0])}"]
        table.caption = "; ".join([*parts, *([f"{len(new)} retrained"] if new else [])])
        return table

    def _left(self, done: int) -> str:
        passed = done - self._before
        if passed < 2:
            return ""
        seconds = (self._clock() - self._started) / passed * max(self._params.search.trials - done, 0)
        return f", {format_seconds(seconds)} left"


def _ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state.is_finished()]


def _best(ledger: TrialQueue) -> FrozenTrial | None:
    done = [trial for trial in ledger.trials() if trial.state == TrialState.COMPLETE and is_feasible(trial)]
    direction = ledger.study.directions[0]
    return min(done, key=lambda trial: sort_value(value_of(trial), direction), default=None)


def _line(trial: FrozenTrial, objective: str) -> str:
    """Return the line of a trial that ended."""
    name, *cells, state = _cells(trial)
    words = ("learning rate {}", "batch {}", "{}", f"{objective} {{}}", "{} samples/s", "{}")
    parts = [word.format(cell) for word, cell in zip(words, cells, strict=True) if cell]
    return "  ".join([f"trial {name}", *parts, state])


def _cells(trial: FrozenTrial) -> tuple[str, ...]:
    """Return the cells of a trial in the table."""
    record = TrialRecord.read(trial)
    name = str(trial.number) if record.of is None else f"{record.of}, {AGAIN.get(str(record.kind), record.kind)}"
    if not record.is_described:  # its worker writes them one after another
        return name, "", "", "", "", "", "", record.refused or trial.state.name.lower()
    latest = trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None
    value = trial.values[0] if trial.values else latest
    return (
        name,
        f"{record.learning_rate:.3g}",
        str(record.effective_batch_size),
        f"{record.accumulation_steps} x {record.micro_batch_size}",
        "" if value is None else format_score(value),
        "" if record.images_per_second is None else f"{record.images_per_second:,.0f}",
        "" if record.peak_bytes is None else format_bytes(record.peak_bytes),
        trial.state.name.lower() if is_feasible(trial) else "infeasible",
    )
