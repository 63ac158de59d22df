"""The workers of a search on this machine, begun, begun again where one is killed, and watched."""

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import final

from bigstep.config.params import Params
from bigstep.console import console
from bigstep.runtime.child_process import set_parent_death_signal, start_module
from bigstep.search.request import SearchRequest
from bigstep.search.storage import STORAGE_ERRORS
from bigstep.search.trial_queue import TrialQueue
from bigstep.search.workers.progress_table import ProgressTable, live_table

__all__ = ["watch_workers"]

INTERVAL = 1.0  # seconds between two looks
QUICK, QUICK_DEATHS = 20.0, 3  # a worker that is killed this soon, this often in a row, is not begun again


def watch_workers(
    request: SearchRequest, params: Params, ledgers: tuple[TrialQueue, TrialQueue], state: Path, count: int
) -> int:
    """Run the workers to their end, and tell what they do.

    Returns:
        0, the exit code of a worker that failed, or 128 and the signal that this process was told to stop by.
    """
    crew = _WorkerPool(request, count, state)
    display = ProgressTable(params, ledgers)
    with crew.signals_passed_on(), live_table() as screen:
        crew.begin()
        while crew.is_working():
            with contextlib.suppress(*STORAGE_ERRORS):  # the workers wait for it, and say so
                display.show(screen)
            time.sleep(INTERVAL)
        with contextlib.suppress(*STORAGE_ERRORS):
            display.show(screen)
    return crew.code()


@final
class _WorkerPool:
    def __init__(self, request: SearchRequest, count: int, state: Path) -> None:
        self._request, self._count, self._state = request, count, state
        self._workers: dict[int, subprocess.Popen[str]] = {}
        self._begun: dict[int, float] = {}
        self._deaths: dict[int, int] = {}
        self._codes: list[int] = []
        self.told: int | None = None

    def begin(self) -> None:
        for number in range(self._count):
            self._start(number)

    def is_working(self) -> bool:
        for number, process in list(self._workers.items()):
            code = process.poll()
            if code is None:
                continue
            del self._workers[number]
            soon = time.monotonic() - self._begun[number] < QUICK
            self._deaths[number] = self._deaths.get(number, 0) + 1 if soon else 0
            if code < 0 and self.told is None and self._deaths[number] < QUICK_DEATHS:
                console.print(f"worker {number} was killed ({signal.Signals(-code).name}); it is begun again")
                self._start(number)
                continue
            self._codes.append(code)
            if code > 0 and self.told is None:
                self._explain(number)
                self._stop(signal.SIGTERM)
        return bool(self._workers)

    def code(self) -> int:
        if self.told is not None:
            return 128 + self.told
        return next((code if code > 0 else 1 for code in self._codes if code), 0)

    @contextmanager
    def signals_passed_on(self) -> Iterator[None]:
        """Ctrl-C reaches the group by itself; SIGTERM is passed on. The workers stop after their step, with a checkpoint."""

        def handle(number: int, frame: FrameType | None) -> None:
            del frame
            self.told = number
            if number == signal.SIGTERM:
                self._stop(number)

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

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
        process.stdin.write(json.dumps(asdict(self._request)))
        process.stdin.close()
        self._workers[number], self._begun[number] = process, time.monotonic()

    def _stop(self, number: int) -> None:
        for process in self._workers.values():
            process.send_signal(number)

    def _explain(self, number: int) -> None:
        path = self._log(number)
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        console.print(f"worker {number} failed: {lines[-1] if lines else 'it said nothing'} (all it said: {path})")

    def _log(self, number: int) -> Path:
        return self._state / f"worker-{number}.log"
