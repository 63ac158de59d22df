"""Start the workers of a search on this machine, restart those that are killed, and show their progress."""

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import final

from bigstep.config.params import Params
from bigstep.console import console
from bigstep.runtime.child_process import set_parent_death_signal, start_module
from bigstep.runtime.stop_signals import handling
from bigstep.search.request import SearchRequest
from bigstep.search.storage import STORAGE_ERRORS
from bigstep.search.trial_queue import TrialQueue
from bigstep.search.workers.progress_table import ProgressTable, live_table

__all__ = ["watch_workers"]

POLL_SECONDS = 1.0
EARLY_DEATH_SECONDS, MAX_EARLY_DEATHS = 20.0, 3  # a worker killed so early so often in a row is not restarted


def watch_workers(
    request: SearchRequest,
    params: Params,
    ledgers: tuple[TrialQueue, TrialQueue],
    state: Path,
    count: int,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Run the workers to their end, and show their progress; ``clock`` and ``sleep`` are those of the time in between.

    Returns:
        0, the exit code of a worker that failed, or 128 plus the number of the signal that stopped this process.
    """
    pool = _WorkerPool(request, count, state, clock)
    table = ProgressTable(params, ledgers, clock)
    with pool.signals_passed_on(), live_table() as screen:
        pool.start()
        while pool.is_working():
            with contextlib.suppress(*STORAGE_ERRORS):  # the workers wait for it and print a message
                table.show(screen)
            sleep(POLL_SECONDS)
        with contextlib.suppress(*STORAGE_ERRORS):
            table.show(screen)
    return pool.code()


@final
class _WorkerPool:
    def __init__(self, request: SearchRequest, count: int, state: Path, clock: Callable[[], float]) -> None:
        self._request, self._count, self._state, self._clock = request, count, state, clock
        self._workers: dict[int, subprocess.Popen[str]] = {}
        self._started: dict[int, float] = {}
        self._deaths: dict[int, int] = {}
        self._codes: list[int] = []
        self.received: int | None = None

    def start(self) -> None:
        for number in range(self._count):
            self._start(number)

    def is_working(self) -> bool:
        for number, process in list(self._workers.items()):
            code = process.poll()
            if code is None:
                continue
            del self._workers[number]
            soon = self._clock() - self._started[number] < EARLY_DEATH_SECONDS
            self._deaths[number] = self._deaths.get(number, 0) + 1 if soon else 0
            if code < 0 and self.received is None and self._was_restarted(number, signal.Signals(-code).name):
                continue
            self._codes.append(code)
            if code > 0 and self.received is None:
                self._explain(number)
                self._stop(signal.SIGTERM)
        return bool(self._workers)

    def code(self) -> int:
        if self.received is not None:
            return 128 + self.received
        failed = [code for code in self._codes if code > 0]
        return failed[0] if failed else int(0 not in self._codes)  # a worker that ends has left nothing to do

    def _was_restarted(self, number: int, name: str) -> bool:
        """Restart a worker that was killed by the signal of this name, unless that came early too often."""
        if self._deaths[number] < MAX_EARLY_DEATHS:
            console.print(f"worker {number} was killed ({name}); restarting it")
            self._start(number)
            return True
        console.print(
            f"worker {number} was killed ({name}) {MAX_EARLY_DEATHS} times in a row within {EARLY_DEATH_SECONDS:.0f} s of its "
            "start; it is not restarted"
        )
        return False

    @contextmanager
    def signals_passed_on(self) -> Iterator[None]:
        """Pass SIGTERM on (Ctrl-C reaches the workers by itself); they stop after their step, with a checkpoint."""

        def handle(number: int, frame: FrameType | None) -> None:
            del frame
            self.received = number
            if number == signal.SIGTERM:
                self._stop(number)

        with handling(handle):
            yield

    def _start(self, number: int) -> None:
        self._state.mkdir(parents=True, exist_ok=True)
        with self._log(number).open("a", encoding="utf-8") as log:
            process = start_module(
                "bigstep.search.workers.worker",
                cwd=self._request.root,
                stdout=log,
                stderr=log,
                preexec_fn=set_parent_death_signal,  # no threads start processes here
            )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:  # it may have ended, which is noticed later
            process.stdin.write(json.dumps(asdict(self._request)))
        self._workers[number], self._started[number] = process, self._clock()

    def _stop(self, number: int) -> None:
        for process in self._workers.values():
            process.send_signal(number)

    def _explain(self, number: int) -> None:
        path = self._log(number)
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        console.print(f"worker {number} failed: {lines[-1] if lines else 'no output'} (log: {path})")

    def _log(self, number: int) -> Path:
        return self._state / f"worker-{number}.log"
