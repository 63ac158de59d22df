"""The storage of studies: a journal on this machine's disk, or a database for many machines.

A journal is lines of JSON, each an operation that its readers replay. A process that is killed while it writes leaves a torn
last line, whose operation did not happen. The line is removed before the next is written, under a lock that the system
releases when its holder dies; Optuna's own locks wait for 30 seconds in that case.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import exc

from bigstep.atomic_files import parse_json, whole_file
from bigstep.console import console
from bigstep.errors import ProjectError
from bigstep.optuna_mlflow.optuna_internals import BaseJournalFileLock
from bigstep.optuna_mlflow.study_lock import alone_in
from bigstep.runtime.file_locks import exclusive_lock, file_lock
from bigstep.tracking.database import sqlite_file, without_password

__all__ = [
    "STORAGE_ERRORS",
    "RepairingLock",
    "absolute_address",
    "first_line",
    "is_outage",
    "open_storage",
    "open_study",
    "storage_is_gone",
]

OPERATION = b'{"op_code"'  # how each line of a journal starts
BUSY_SECONDS = 60
START_SECONDS = 10.0  # to wait for a database that is starting
UNAVAILABLE = re.compile(r"refused|starting up|shutting down|closed the connection|timeout|timed out", re.IGNORECASE)
STORAGE_ERRORS = (exc.OperationalError, exc.InterfaceError, optuna.exceptions.StorageInternalError)
REFUSALS = (exc.DataError, exc.IntegrityError, exc.NotSupportedError, exc.ProgrammingError)


def open_storage(address: str) -> BaseStorage:
    """Open the storage at a path (a journal) or at the address of a database, and create it if it does not exist.

    Any number of processes may do so at once.

    Raises:
        ProjectError: it is not a storage, or does not answer.
    """
    return _open_database(address) if "://" in address else _open_journal(Path(address))


def open_study(storage: BaseStorage, name: str, directions: Sequence[str]) -> optuna.Study:
    """Open a study, and create it if it does not exist.

    Raises:
        ProjectError: it has other directions.
    """
    wanted = [optuna.study.StudyDirection[direction.upper()] for direction in directions]
    study = optuna.create_study(storage=storage, study_name=name, directions=wanted, load_if_exists=True)
    found = [direction.name.lower() for direction in study.directions]
    if found != list(directions):
        raise ProjectError(
            f"study {name}: expected directions {', '.join(directions)}, got {', '.join(found)}; choose another name"
        )
    return study


def absolute_address(address: str, root: Path) -> str:
    """Return the address of a database; the relative path of an SQLite file counts from ``root``."""
    from sqlalchemy.engine import make_url

    try:
        url = make_url(address)
    except exc.ArgumentError:
        return address  # opening it says what is wrong
    name = url.database or ":memory:"
    if url.get_backend_name() != "sqlite" or name == ":memory:" or name.startswith("file:"):
        return address
    return url.set(database=str(root / name)).render_as_string(hide_password=False)


@final
class RepairingLock(BaseJournalFileLock):
    """A lock on a journal that is released when its holder dies; taking it removes a torn last line."""

    def __init__(self, path: Path) -> None:
        """Lock the journal ``path`` through a file in the same folder."""
        self.path = path
        self._lock = file_lock(path.with_name(f"{path.name}.flock"))

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        _cut_torn_line(self.path)
        return True

    def release(self) -> None:
        """Release it."""
        self._lock.release()


def _open_journal(path: Path) -> BaseStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        lock = RepairingLock(path)
        lock.acquire()
        try:
            _mend(path)
        finally:
            lock.release()
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (OSError, KeyError, TypeError, AttributeError, ValueError, AssertionError) as error:
        raise ProjectError(
            f"search.storage: expected a journal of Optuna, got {path} ({error}); move it away, or choose another path"
        ) from None


def _cut_torn_line(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _mend(path: Path) -> None:
    """Remove partly written operations from the middle, left when a program without this lock wrote after one.

    Raises:
        ValueError: a line holds no operation.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    mended = [_whole_part(line, number) for number, line in enumerate(lines, 1)]
    if mended == lines:
        return
    original = path.with_name(f"{path.name}.torn")
    with whole_file(original) as beside:
        beside.write_bytes(b"".join(lines))
    with path.open("rb+") as file:  # in place: others have it open
        file.write(b"".join(mended))
        file.truncate()
    console.print(f"repaired {path.name}, which held a partly written operation; the original is {original.name}")


def _whole_part(line: bytes, number: int) -> bytes:
    start = 0
    while True:
        try:
            if "op_code" in parse_json(line[start:]):
                return line[start:]
        except (ValueError, TypeError):
            pass
        start = line.find(OPERATION, start + 1)
        if start < 0:
            raise ValueError(f"line {number} is not an operation")


def _open_database(
    address: str, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> BaseStorage:
    deadline = clock() + START_SECONDS
    while True:
        try:
            return _create(_with_driver(address))
        except (exc.SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError) as error:
            if clock() > deadline or not isinstance(error, exc.OperationalError) or not UNAVAILABLE.search(str(error)):
                raise storage_is_gone(address, error) from None
            sleep(0.5)


def storage_is_gone(address: str, error: Exception) -> ProjectError:
    """Return the error for a storage that does not answer, or refuses; it shows no password."""
    way_out = "start it, or correct the address" if is_outage(error) else "let its user write there, or choose another storage"
    return ProjectError(
        f"search.storage: expected an answer from {without_password(address)}, got {first_line(error)}; {way_out}"
    )


def is_outage(error: Exception) -> bool:
    """Return whether a storage did not answer; one that answered and refused does so again."""
    return not isinstance(_cause(error), REFUSALS)


def first_line(error: Exception) -> str:
    """Return the message of a database's error, in one line and without the failed statement."""
    cause = _cause(error)
    return [*str(getattr(cause, "orig", None) or cause).strip().splitlines(), type(cause).__name__][0]


def _cause(error: Exception) -> BaseException:
    """Return the database's error, which Optuna puts into one of its own."""
    return error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ else error


def _with_driver(address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in ("postgresql", "postgres") else address


def _create(address: str) -> RDBStorage:
    """Create the tables under a lock: two processes that do so at once fail."""
    path = sqlite_file(address)
    if path is not None:
        with exclusive_lock(path.with_name(f"{path.name}.lock")):
            return RDBStorage(address, engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}})
    with alone_in(address):
        return RDBStorage(address, engine_kwargs={"pool_pre_ping": True})
