"""One process at a time on a study, on any machine that reaches its storage."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from bigstep.runtime.file_locks import exclusive_lock

__all__ = ["CREATION", "study_lock"]
CREATION = zlib.crc32(b"bigstep: tables of a study")  # PostgreSQL's advisory locks have numbers


@contextmanager
def study_lock(storage: BaseStorage) -> Iterator[None]:
    """Let one process at a time, on any machine that reaches the storage, run the block."""
    backend = getattr(storage, "_backend", storage)  # of a journal, and of Optuna's cache over a database
    path, address = getattr(backend, "_file_path", None), str(getattr(backend, "url", ""))
    if address.startswith("sqlite:///"):
        path = address.removeprefix("sqlite:///")
    if path is not None:
        with exclusive_lock(Path(path).with_name(f"{Path(path).name}.claim")):
            yield
    elif "://" in address:
        with _alone_in(address):
            yield
    else:
        yield


@contextmanager
def _alone_in(address: str) -> Iterator[None]:
    import sqlalchemy

    if not address.startswith("postgresql"):
        yield
        return
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.pool.NullPool)
    parameters: dict[str, Any] = {"number": CREATION}
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:number)"), parameters)
        try:
            yield
        finally:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:number)"), parameters)
