"""Wait for a storage that does not answer for a while: a server that restarts, a network that comes back."""

import time
from collections.abc import Callable
from typing import TypeVar

from bigstep.console import console
from bigstep.search.storage import STORAGE_ERRORS, first_line, is_outage, storage_is_gone

__all__ = ["OUTAGE", "patiently"]

T = TypeVar("T")
OUTAGE = 60.0  # seconds that a search waits for its storage
POLL = 0.5  # seconds between two tries


def _never_stop() -> None:
    """Do not stop."""


def patiently(
    action: Callable[[], T],
    address: str,
    *,
    seconds: float = OUTAGE,
    check: Callable[[], None] = _never_stop,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Do something that needs the storage at ``address``, and retry while the storage does not answer.

    Args:
        action: what to do; it must be safe to interrupt anywhere and repeat.
        address: of the storage, for the error message.
        seconds: how long to try.
        check: called before each try; what it raises ends the waiting.
        clock: in seconds.
        sleep: waits between two tries.

    Returns:
        What ``action`` returns.

    Raises:
        ProjectError: the storage did not answer in time, or refused.
    """
    since: float | None = None
    while True:
        check()
        try:
            return action()
        except STORAGE_ERRORS as error:
            now = clock()
            if now - (now if since is None else since) >= seconds or not is_outage(error):
                raise storage_is_gone(address, error) from None
            if since is None:
                since = now
                console.print(f"the study's storage does not answer ({first_line(error)}); waiting up to {seconds:.0f} s")
        sleep(POLL)
