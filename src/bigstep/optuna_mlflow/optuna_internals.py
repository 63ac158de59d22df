"""Every private name of Optuna that bigstep uses, each with its reason; tests/test_internals.py tries them all.

A name that is missing is an error and never a default: without the storage's file or address there would be no lock.
"""

from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage  # what optuna.storages.get_storage puts around a database
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock  # the type that a journal's lock must have
from optuna.trial import FrozenTrial

from bigstep.errors import ProjectError

__all__ = ["BaseJournalFileLock", "StoragePlace", "id_of", "storage_of", "storage_place", "trial_id_of"]


@dataclass(frozen=True)
class StoragePlace:
    """Where a storage keeps its studies: a journal's file, or a database's address; neither for one in memory."""

    file: Path | None = None
    address: str | None = None


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return the storage of a study: Optuna has no public attribute for it."""
    return study._storage  # noqa: SLF001


def id_of(study: optuna.Study) -> int:
    """Return a study's number in its storage, which the storage's methods ask for: there is no public attribute for it."""
    return study._study_id  # noqa: SLF001


def trial_id_of(trial: optuna.Trial | FrozenTrial) -> int:
    """Return a trial's number in its storage, which the storage's methods ask for: there is no public attribute for it."""
    return trial._trial_id  # noqa: SLF001


def storage_place(storage: BaseStorage) -> StoragePlace:
    """Return where a storage keeps its studies.

    Raises:
        ProjectError: the storage is of a kind that cannot be locked.
    """
    if isinstance(storage, InMemoryStorage):
        return StoragePlace()
    if isinstance(storage, _CachedStorage):
        storage = storage._backend  # noqa: SLF001 # the cache has no address of its own
    if isinstance(storage, RDBStorage):
        return StoragePlace(address=storage.url)
    backend = storage._backend if isinstance(storage, JournalStorage) else storage  # noqa: SLF001 # public nowhere
    if isinstance(backend, JournalFileBackend):
        return StoragePlace(file=Path(backend._file_path))  # noqa: SLF001 # public nowhere
    raise ProjectError(
        f"storage of the study: expected a journal file, a database or memory, got {type(backend).__name__}, which cannot be "
        "locked; use JournalFileBackend or RDBStorage"
    )
