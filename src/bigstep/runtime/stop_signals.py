"""SIGTERM, SIGINT and a time limit: the first ends the work at the next safe point, a second signal the process at once."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

from bigstep.errors import ExitCode

__all__ = ["Signals", "StopRequestedError", "handling"]

DUPLICATE_WINDOW_SECONDS = 0.5  # seconds within which two signals are one, sent to the group and passed on besides
WATCHED = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGTERM and SIGINT with ``handler`` within the block, in the main thread; then as before."""
    before = {number: signal.signal(number, handler) for number in WATCHED}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


class StopRequestedError(BaseException):
    """The process was asked to stop. Not an ordinary error: nothing may catch it and continue."""

    def __init__(self, cause: str, exit_code: int) -> None:
        """Keep what stopped it."""
        super().__init__(f"stopped by {cause}")
        self.exit_code = exit_code

    @classmethod
    def by_signal(cls, number: int) -> "StopRequestedError":
        """Return the error of a signal."""
        return cls(signal.Signals(number).name, 128 + number)


@final
class Signals:
    """The stop signals received: the process stops at once, but within :meth:`deferred` only at :meth:`raise_if_received`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """No signal was received yet; two within half a second of ``clock`` are one."""
        self._clock = clock
        self.received: int | None = None
        self._deferred = False
        self._at = 0.0
        self._deadline, self._is_late = math.inf, False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Handle the signals within the block, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with handling(self._handle):
            yield

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block a first signal is only noted."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def stop_after(self, seconds: float) -> None:
        """Request a stop ``seconds`` from now."""
        self._deadline = self._clock() + seconds

    def is_stopping(self) -> bool:
        """Return whether a signal came, or the time is up: :meth:`raise_if_received` then raises."""
        self._is_late = self._is_late or self._clock() >= self._deadline
        return self._is_late or self.received is not None

    def raise_if_received(self) -> None:
        """Stop here if a signal came, or :meth:`is_stopping` found that the time is up.

        Raises:
            StopRequestedError: one came.
        """
        if self.received is not None:
            raise StopRequestedError.by_signal(self.received)
        if self._is_late:
            raise StopRequestedError("hardware.max_time", ExitCode.TIME_IS_UP)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None:
            if self._clock() - self._at > DUPLICATE_WINDOW_SECONDS:
                os._exit(128 + number)
            return
        self.received, self._at = number, self._clock()
        if not self._deferred:
            raise StopRequestedError.by_signal(number)
