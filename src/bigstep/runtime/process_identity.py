"""The name of a process, which no other process has, and whether it lives."""

import os
import socket
from pathlib import Path

__all__ = ["is_alive", "process_name"]


def process_name() -> str:
    """Name this process so that no other has its name: host, boot, process id, start time and PID namespace."""
    return f"{socket.gethostname()} {_boot()} {os.getpid()} {_started(os.getpid())} {_namespace()}"


def is_alive(name: str) -> bool | None:
    """Return whether a process that :func:`process_name` named still runs.

    None where this process cannot see it: on another machine, or in another PID namespace (containers may share a host name).
    A name without a namespace was written by an earlier version and is taken to be of this one.
    """
    host, boot, number, started, namespace = [*name.split(" "), "", "", "", "", ""][:5]
    if host != socket.gethostname() or (boot == _boot() and namespace not in ("", _namespace())):
        return None
    return boot == _boot() and number.isdigit() and bool(started) and _started(int(number)) == started


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip()[:8] if path.exists() else "-"


def _namespace() -> str:
    path = Path("/proc/self/ns/pid")
    return str(path.stat().st_ino) if path.exists() else "-"


def _started(number: int) -> str:
    """Return when a process started, in ticks since the machine did; empty if there is no such process.

    Not psutil's ``create_time``: that is a time of day, which changes when the clock is set, and the name would with it.
    """
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
