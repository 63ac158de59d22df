"""A standard output without a reader, as after `| head`: the work continues, and what it prints is dropped."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["drop_output", "printing_result"]


def drop_output() -> None:
    """Drop everything that this process still prints."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


@contextmanager
def printing_result() -> Iterator[None]:
    """Within the block something is printed to the standard output; it is no error if there is no reader."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
