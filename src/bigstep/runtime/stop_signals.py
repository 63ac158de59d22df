"""SIGTERM and SIGINT: the first ends the work at the next safe point, a second one ends the process at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

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

    def __init__(self, number: int) -> None:
        """Keep which signal it was."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@final
class Signals:
    """The stop signals received: the process stops at once, but within :meth:`deferred` only at :meth:`raise_if_received`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """No signal was received yet; two within half a second of ``clock`` are one."""
        self._clock = clock
        self.received: int | None = None
        self._deferred = False
        self._at = 0.0

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

    def raise_if_received(self) -> None:
        """Stop here if a signal came.

        Raises:
            StopRequestedError: one came.
        """
        if self.received is not None:
            raise StopRequestedError(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None:
            if self._clock() - self._at > DUPLICATE_WINDOW_SECONDS:
                os._exit(128 + number)
            return
        self.received, self._at = number, self._clock()
        if not self._deferred:
            raise StopRequestedError(number)
