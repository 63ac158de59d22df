"""A command that this process runs and waits for: it ends with us, and is stopped when we are."""

import contextlib
import ctypes
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from bigstep.runtime.environment import child_environment, search_path
from bigstep.runtime.stop_signals import handling

__all__ = ["die_with_parent", "end_module", "read_answer", "run_child", "set_parent_death_signal", "start_module"]

PR_SET_PDEATHSIG = 1  # of Linux's prctl
END_SECONDS = 2.0  # that a process may take to end


def run_child(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> int:
    """Run ``command`` in ``folder`` and return its exit code, 1 for codes without a meaning, or 128 plus the signal received.

    Ctrl-C reaches the whole group, so it is only waited for; SIGTERM is passed on to the stage below.
    """
    process = subprocess.Popen(command, cwd=folder, env=dict(environment), preexec_fn=die_with_parent)  # noqa: PLW1509 # no threads here
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if number == signal.SIGTERM:
            _pass_on(process)

    with handling(handle):
        code = process.wait()
    return 128 + received[0] if received and code else min(abs(code), 1)


def die_with_parent() -> None:
    """Make this process, just started, end at once when its parent ends, if the system supports it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def set_parent_death_signal() -> None:
    """Make this process, just started, get SIGTERM when its parent ends, if the system supports it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _pass_on(process: "subprocess.Popen[bytes]") -> None:
    """Send SIGTERM to the stage that runs below `dvc`, or to `dvc` if no stage runs: `dvc` would die and leave the stage."""
    with contextlib.suppress(psutil.Error):
        below = psutil.Process(process.pid).children(recursive=True)
        stages = [child for child in below if any("pipelines/" in word for word in child.cmdline()[1:2])]
        for child in stages:
            child.send_signal(signal.SIGTERM)
        if not stages:
            process.terminate()


def start_module(module: str, **options: Any) -> "subprocess.Popen[str]":
    """Start a module of this code, and no other copy of it, in a new process; ``options`` are those of ``Popen``.

    Its standard input is a pipe of text. The current folder is not searched for modules (``-P``).
    """
    source = Path(__file__).resolve().parents[2]
    environment = child_environment({"PYTHONPATH": search_path("PYTHONPATH", str(source))})
    command = [sys.executable, "-P", "-m", module]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment, **options)


def end_module(process: "subprocess.Popen[str]", listener: threading.Thread) -> None:
    """Close the input of a process of :func:`start_module`, at which it ends, or kill it; then end what reads its output."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    process.kill()
    process.wait()
    listener.join(END_SECONDS)
    process.stdout.close()


def read_answer(line: str) -> dict[str, Any]:
    """Return what a process says in a line of JSON; nothing of a line that Python prints before the process has its output."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
