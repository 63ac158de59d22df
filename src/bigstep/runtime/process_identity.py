"""The name of a process, which no other process has, and whether it lives."""

import os
import socket
from pathlib import Path

import psutil

__all__ = ["is_alive", "process_name"]

PROC = Path("/proc")  # of Linux


def process_name() -> str:
    """Name this process so that no other has its name: host, boot, process id, start time and PID namespace."""
    return f"{socket.gethostname()} {_boot()} {os.getpid()} {_started(os.getpid())} {_namespace()}"


def is_alive(name: str) -> bool | None:
    """Return whether a process that :func:`process_name` named still runs.

    None where this process cannot see it: on another machine, or in another PID namespace (containers may share a host name);
    and without /proc where a process has its id and another start time, which changes when the clock is set.
    A name without a namespace was written by an earlier version and is taken to be of this one.
    """
    host, boot, number, started, namespace = [*name.split(" "), "", "", "", "", ""][:5]
    if host != socket.gethostname() or (boot == _boot() and namespace not in ("", _namespace())):
        return None
    if boot != _boot() or not number.isdigit():
        return False
    is_same = bool(started) and _started(int(number)) == started
    if PROC.exists() or is_same:
        return is_same
    return None if psutil.pid_exists(int(number)) else False


def _boot() -> str:
    path = PROC / "sys" / "kernel" / "random" / "boot_id"
    return path.read_text().strip()[:8] if path.exists() else "-"


def _namespace() -> str:
    path = PROC / "self" / "ns" / "pid"
    return str(path.stat().st_ino) if path.exists() else "-"


def _started(number: int) -> str:
    """Return when a process started, in ticks since the machine did; empty if there is no such process.

    Not psutil's ``create_time``, where there is /proc: that is a time of day, which changes when the clock is set, and the name
    would with it.
    """
    try:
        if not PROC.exists():
            return f"{psutil.Process(number).create_time():.2f}"
        return (PROC / str(number) / "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, psutil.Error):
        return ""
