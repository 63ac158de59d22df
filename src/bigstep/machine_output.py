"""``--json``: the result of a command alone on stdout, everything else that is printed on stderr."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bigstep.closed_output import printing_result

__all__ = ["Report", "no_report", "reporting"]

Report = Callable[[Any], None]
"""Takes the result of a command, of plain values."""


def no_report(result: Any) -> None:
    """Print nothing: the command has printed its result for people."""
    del result


@contextmanager
def reporting(*, as_json: bool) -> Iterator[Report]:
    """Yield what takes the result of a command.

    With ``as_json`` it is printed as JSON (numbers that are not finite as null), and whatever this process and its children
    print meanwhile goes to stderr.
    """
    if not as_json:
        yield no_report
        return
    sys.stdout.flush()
    output, kept = sys.stdout, os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    results: list[Any] = []
    try:
        yield results.append
    finally:
        sys.stdout = output
        os.dup2(kept, 1)
        os.close(kept)
    with printing_result():
        for result in results:
            print(json.dumps(_finite(result), indent=2, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
