"""Every private name of MLflow that bigstep uses, each with its reason; tests/test_internals.py tries them all.

They are imported where they are used: importing MLflow takes seconds.
"""

from importlib.util import find_spec
from pathlib import Path

__all__ = ["forget_engine", "migrations_folder"]


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
