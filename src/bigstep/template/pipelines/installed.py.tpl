"""Import the installed bigstep; one line and exit code 2 where it is missing."""

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["importing"]


@contextmanager
def importing() -> Iterator[float]:
    """Let the garbage collector rest within the block: what is imported stays.

    Yields:
        The time, as of ``time.time()``, before the first import.
    """
    started = time.time()
    gc.disable()
    try:
        yield started
    except ModuleNotFoundError as error:
        line = f"{sys.executable}: expected bigstep and what it needs, got no module {error.name!r}"
        print(f"bigstep: {line}; run pip install -r requirements.txt", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        gc.freeze()
        gc.enable()
