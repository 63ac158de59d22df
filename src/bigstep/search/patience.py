"""A storage that is away for a while: a server that starts again, a network that comes back."""

import time
from collections.abc import Callable
from typing import TypeVar

from bigstep.console import console
from bigstep.search.storage import STORAGE_ERRORS, first_line, storage_is_gone

__all__ = ["OUTAGE", "patiently"]

T = TypeVar("T")
OUTAGE = 60.0  # seconds that a storage may be away under a search
POLL = 0.5  # seconds between two tries


def _go_on() -> None:
    """Stop nothing."""


def patiently(action: Callable[[], T], address: str, *, seconds: float = OUTAGE, check: Callable[[], None] = _go_on) -> T:
    """Do what needs the storage at ``address``, again and again while that does not answer.

    Args:
        action: what to do; it may be interrupted anywhere and done again.
        address: of the storage, for the message.
        seconds: how long to try.
        check: called before each try; what it raises ends the waiting.

    Returns:
        What ``action`` returns.

    Raises:
        ProjectError: the storage did not answer in time.
    """
    since: float | None = None
    while True:
        check()
        try:
            return action()
        except STORAGE_ERRORS as error:
            now = time.monotonic()
            if now - (now if since is None else since) >= seconds:
                raise storage_is_gone(address, error) from None
            if since is None:
                since = now
                console.print(f"the study's storage does not answer ({first_line(error)}); waiting up to {seconds:.0f} s")
        time.sleep(POLL)
