"""A loop in a process of its own, which runs steps when it is asked: with the heap, threads and caches that a script has."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["OwnProcess"]

REST = 0.05  # seconds before a step is timed: threads of the process before it still spin

_context = multiprocessing.get_context("spawn")


class OwnProcess:
    """Holds a step in another process; between two requests that process sleeps."""

    def __init__(self, build: Callable[..., Callable[[], object]], *arguments: Any) -> None:
        """Start it; ``build(*arguments)``, a function of a module, returns the step there."""
        self._connection, far = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(far, build, arguments), daemon=True)
        self._process.start()
        far.close()

    def seconds(self, steps: int = 1) -> float:
        """Run ``steps`` of them, and return what they took."""
        self._connection.send(steps)
        return float(self._connection.recv())

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, build: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> None:
    step = build(*arguments)
    while True:
        try:
            count = connection.recv()
        except EOFError:
            return
        time.sleep(REST)
        started = time.perf_counter()
        for _ in range(count):
            step()
        connection.send(time.perf_counter() - started)
