"""A stage ends when the `dvc` that started it does: an orphan would train on beside the next start."""

import os
import signal
import threading
import time
from collections.abc import Callable

import psutil

from bigstep.runtime.environment import DVC_STAGE, is_set
from bigstep.runtime.stop_signals import Signals

__all__ = ["exit_with_parent"]

INTERVAL = 0.5  # seconds


def exit_with_parent(signals: Signals, sleep: Callable[[float], None] = time.sleep) -> None:
    """If DVC runs this process, send this process SIGTERM when DVC has ended."""
    if not is_set(DVC_STAGE):
        return
    line = _ancestors()
    if line:
        threading.Thread(target=_watch, args=(line, signals, sleep), name="bigstep-lifeline", daemon=True).start()


def _ancestors() -> list[tuple[int, int]]:
    """Return (child, parent) from this process up to `dvc`: the shells between them run the same command."""
    child, parent, found = os.getpid(), os.getppid(), []
    while parent > 1:
        found.append((child, parent))
        if not _is_shell(parent):
            break
        child, parent = parent, _parent_of(parent)
    return found


def _watch(line: list[tuple[int, int]], signals: Signals, sleep: Callable[[float], None]) -> None:
    own = os.getpid()
    while all((os.getppid() if child == own else _parent_of(child)) == parent for child, parent in line):
        sleep(INTERVAL)
    if signals.received is None:
        os.kill(own, signal.SIGTERM)


def _is_shell(number: int) -> bool:
    try:
        words = psutil.Process(number).cmdline()
    except psutil.Error:
        return False
    return "-c" in words[1:3] and any("pipelines/" in word for word in words)


def _parent_of(number: int) -> int:
    try:
        return int(psutil.Process(number).ppid())
    except psutil.Error:
        return 0
