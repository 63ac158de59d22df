"""Every private name of MLflow that bigstep uses, each with its reason; tests/test_internals.py tries them all.

They are imported where they are used: importing MLflow takes seconds.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

__all__ = ["forget_engine", "known_packages", "migrations_folder"]

PACKAGES = "_MODULES_TO_PACKAGES"


@contextmanager
def known_packages(names: Iterable[str]) -> Iterator[None]:
    """Make MLflow look up the versions of these packages within the block without listing every file of every installed one.

    It does so to compare the requirements given for a model with what is installed, which takes a fifth of the whole logging of
    a small model; no option leaves it out. Where the private name is gone, nothing is changed.
    """
    from mlflow.utils import requirements_utils

    is_unread = getattr(requirements_utils, PACKAGES, {}) is None
    if is_unread:
        setattr(requirements_utils, PACKAGES, {name: [name] for name in names})
    try:
        yield
    finally:
        if is_unread:
            setattr(requirements_utils, PACKAGES, None)


def forget_engine(uri: str) -> None:
    """Close MLflow's connections to a database, which would keep using a renamed file: MLflow has no public way to do so."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engine = SqlAlchemyStore._engine_map.pop(uri, None)  # noqa: SLF001
    if engine is not None:
        engine.dispose()


def migrations_folder() -> Path:
    """Return the folder of the scripts that upgrade MLflow's database: no public name lists the versions of its schema."""
    package = find_spec("mlflow")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "store" / "db_migrations"
