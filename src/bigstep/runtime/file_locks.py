"""Locks on files, which the system releases when their holder ends."""

from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["Timeout", "exclusive_lock", "file_lock"]

POLL_SECONDS = 0.01


def file_lock(path: Path) -> FileLock:
    """Return a lock on ``path``, not yet taken. On a file system without locks, taking it raises OSError."""
    return FileLock(path, poll_interval=POLL_SECONDS, fallback_to_soft=False)


def exclusive_lock(path: Path, patience: float = -1) -> AbstractContextManager[object]:
    """Acquire the lock ``path``; the result is a context manager that releases it.

    Args:
        path: of the lock's file, which is created with its folder.
        patience: seconds to wait for another holder; -1 waits until it is free.

    Raises:
        Timeout: another holder keeps it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return file_lock(path).acquire(timeout=patience)
