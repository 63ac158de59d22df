"""One process at a time on a study, on any machine that reaches its storage."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optuna.storages import BaseStorage

from bigstep.optuna_mlflow.optuna_internals import storage_place
from bigstep.runtime.file_locks import exclusive_lock
from bigstep.tracking.database import sqlite_file

__all__ = ["CREATION", "alone_in", "study_lock"]
CREATION = zlib.crc32(b"bigstep: tables of a study")  # PostgreSQL's advisory locks have numbers


@contextmanager
def study_lock(storage: BaseStorage) -> Iterator[None]:
    """Run the block in one process at a time, among all machines that reach the storage.

    Raises:
        ProjectError: the storage is of a kind that cannot be locked.
    """
    place = storage_place(storage)
    path = place.file if place.address is None else sqlite_file(place.address)
    if path is not None:
        with exclusive_lock(path.with_name(f"{path.name}.claim")):
            yield
    elif place.address is not None:
        with alone_in(place.address):
            yield
    else:
        yield


@contextmanager
def alone_in(address: str) -> Iterator[None]:
    """Run the block in one process at a time, on all machines that use a PostgreSQL database; other databases have no lock."""
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
