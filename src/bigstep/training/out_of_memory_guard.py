"""A step that survives running out of memory: it happens once or not at all.

Measured on the CPU (docs/memory.md): after a failed allocation oneDNN refuses to work on the thread where it happened, even
when memory is free again, and the exception's traceback holds the activations. So the exception is dropped before anything
else is allocated, and the next try, as all work after it, is on a new thread. Not before: a second thread's own pool of
OpenMP threads costs a fifth of the speed on two cores.
"""

import _thread
import queue
from collections.abc import Callable
from typing import Any, TypeVar, final

import torch

from bigstep.errors import OutOfMemoryError
from bigstep.runtime.failed_allocation import is_failed_allocation
from bigstep.runtime.heap import keep_heap, return_memory

__all__ = ["MemoryExhaustedError", "OutOfMemoryGuard", "is_out_of_memory"]

T = TypeVar("T")
TRIES = 3  # of an action that needs no memory of its own
THREAD_START_TIMEOUT_SECONDS = 10.0  # seconds that a thread may take to start


class MemoryExhaustedError(Exception):
    """Something ran out of memory; the text says what torch said. Nothing of the failed call is held."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a failed allocation: of a GPU's allocator, the CPU's, oneDNN's or Python's."""
    return isinstance(error, torch.OutOfMemoryError) or is_failed_allocation(error)


@final
class OutOfMemoryGuard:
    """Calls functions where a failed allocation can be survived: on the CPU on a new thread after each failure."""

    def __init__(self, device: torch.device) -> None:
        """Guard work on ``device``; on a GPU it stays on the caller's thread."""
        self._threaded = device.type == "cpu"
        if self._threaded:
            keep_heap()
        self._worker: _Worker | None = None
        self._spare: _Worker | None = None  # started while there is memory: later a thread's stack may not fit
        self.num_failures = 0

    def call(self, function: Callable[[], T]) -> T:
        """Call ``function``; its other exceptions pass through.

        Raises:
            MemoryExhaustedError: it ran out of memory; all that it held is free.
        """
        if self._threaded and self._spare is None:
            self._spare = _begin_worker()
        if self._threaded and self._worker is None and self.num_failures:
            self._worker, self._spare = self._spare, _begin_worker()
        value, problem, error = _attempt(function) if self._worker is None else self._worker.call(function)
        if problem is not None:
            self._recover()
            raise MemoryExhaustedError(problem)
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return] # what the function gave

    def insist(self, action: Callable[[], T], undo: Callable[[], None]) -> T:
        """Call an action that allocates nothing to speak of, and again after ``undo`` where it fails.

        Raises:
            OutOfMemoryError: it failed three times in a row.
        """
        for _ in range(TRIES):
            try:
                return self.call(action)
            except MemoryExhaustedError as failure:
                problem = str(failure)
            undo()
        raise OutOfMemoryError(
            f"optimizer step: expected it to fit in memory, got {TRIES} failures in a row: {problem}; close other programs"
        )

    def close(self) -> None:
        """End the threads, and give back what the training kept."""
        for worker in (self._worker, self._spare):
            if worker is not None:
                worker.end()
        self._worker = self._spare = None
        if self._threaded:
            return_memory()

    def _recover(self) -> None:
        self.num_failures += 1
        if self._worker is not None:
            self._worker.end()
            self._worker = None
        return_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _begin_worker() -> "_Worker | None":
    """Start a thread, or return None if not even its stack fits; work then stays on the caller's thread."""
    try:
        return _Worker(torch.get_num_threads())
    except (RuntimeError, MemoryError):  # Python: can't start new thread
        return None


Outcome = tuple[Any, str | None, BaseException | None]


def _attempt(function: Callable[[], Any]) -> Outcome:
    """Return the value, or why memory ran out (a text: the exception, and all that its frames hold, is gone), or the error."""
    try:
        return function(), None, None
    except BaseException as error:  # noqa: BLE001 # handed to the caller's thread
        if not is_out_of_memory(error):
            return None, None, error
        problem = _first_line(error)
    return None, problem, None


def _first_line(error: BaseException) -> str:
    try:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    except MemoryError:
        return "not enough memory"


@final
class _Worker:
    """A thread that calls functions.

    Not of ``threading``: a thread that runs out of memory while it starts never says so there, and its starter waits
    forever (seen in a process with little address space).
    """

    def __init__(self, num_threads: int) -> None:
        """Start it.

        Raises:
            RuntimeError: it did not start.
        """
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Outcome]] | None] = queue.SimpleQueue()
        self._signs: queue.SimpleQueue[None] = queue.SimpleQueue()
        _thread.start_new_thread(self._serve, (num_threads,))
        try:
            self._signs.get(timeout=THREAD_START_TIMEOUT_SECONDS)
        except queue.Empty:
            self._calls.put(None)
            raise RuntimeError("the thread did not start") from None

    def call(self, function: Callable[[], Any]) -> Outcome:
        answer: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._calls.put((function, answer))
        return answer.get()

    def end(self) -> None:
        self._calls.put(None)
        self._signs.get(timeout=THREAD_START_TIMEOUT_SECONDS)

    def _serve(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)  # kept by each thread
        self._signs.put(None)
        while (item := self._calls.get()) is not None:
            function, answer = item
            answer.put(_attempt(function))
            del function, answer, item
        self._signs.put(None)
