"""The identity of a study: its name and its storage's, without driver, user and options."""

import socket
from hashlib import sha256
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from bigstep.optuna_mlflow.optuna_internals import id_of, storage_of, storage_place

__all__ = ["database_name", "id_of", "storage_identity", "storage_of", "study_key"]


def storage_identity(storage: BaseStorage) -> str | None:
    """Return a name for a storage; None for one that ends with its process.

    Raises:
        ProjectError: the storage is of an unknown kind.
    """
    place = storage_place(storage)
    if place.address is not None:
        return database_name(place.address)
    return None if place.file is None else _name_of_file(place.file)


def database_name(address: str) -> str | None:
    """Return a name for a database that does not depend on its driver, user, password or options."""
    from sqlalchemy.engine import URL, make_url

    url = make_url(address)
    if url.get_backend_name() != "sqlite":
        return URL.create(url.get_backend_name(), host=url.host, port=url.port, database=url.database).render_as_string()
    return None if url.database in (None, "", ":memory:") else _name_of_file(Path(str(url.database)))


def _name_of_file(path: Path) -> str:
    return f"{socket.gethostname()}:{path.absolute()}"


def study_key(identity: str, study: optuna.Study) -> str:
    """Return 32 hexadecimal digits that name a study of a storage of this identity."""
    return sha256(f"{identity}\n{study.study_name}".encode()).hexdigest()[:32]
