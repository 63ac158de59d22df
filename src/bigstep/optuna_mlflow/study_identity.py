"""Which study this is, whoever opens it: the storage's name, whatever its driver, user and options."""

import socket
from hashlib import sha256
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

__all__ = ["database_name", "id_of", "storage_identity", "storage_of", "study_key"]


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return the storage of a study."""
    return study._storage  # noqa: SLF001 # Optuna gives it by no other way


def id_of(study: optuna.Study) -> int:
    """Return a study's number in its storage."""
    return study._study_id  # noqa: SLF001 # Optuna gives it by no other way


def storage_identity(storage: BaseStorage) -> str | None:
    """Name a storage; None for one that ends with its process."""
    backend = getattr(storage, "_backend", storage)  # of a journal, and of Optuna's cache over a database
    path, address = getattr(backend, "_file_path", None), getattr(backend, "url", None)
    if address is not None:
        return database_name(str(address))
    return None if path is None else _name_of_file(path)


def database_name(address: str) -> str | None:
    """Name a database, whatever its driver, user, password and options."""
    from sqlalchemy.engine import URL, make_url

    url = make_url(address)
    if url.get_backend_name() != "sqlite":
        return URL.create(url.get_backend_name(), host=url.host, port=url.port, database=url.database).render_as_string()
    return None if url.database in (None, "", ":memory:") else _name_of_file(str(url.database))


def _name_of_file(path: str) -> str:
    return f"{socket.gethostname()}:{Path(path).absolute()}"


def study_key(identity: str, study: optuna.Study) -> str:
    """Return 32 hexadecimal digits that name a study of a storage of this identity."""
    return sha256(f"{identity}\n{study.study_name}".encode()).hexdigest()[:32]
