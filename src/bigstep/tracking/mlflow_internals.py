"""Every private name of MLflow that bigstep uses, each with its reason; tests/test_internals.py tries them all.

They are imported where they are used: importing MLflow takes seconds.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.models import Model

__all__ = ["forget_engine", "known_packages", "migrations_folder", "save_example", "write_environments"]

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


def save_example(model: "Model", example: Any, path: str) -> None:
    """Write an input example in MLflow's form, and name it in the model: only MLflow's flavors do so publicly."""
    from mlflow.models.utils import _save_example

    _save_example(model, example, path)


def write_environments(folder: Path, requirements: Sequence[str]) -> dict[str, str]:
    """Write the packages that a model needs in the three forms that MLflow reads: only its flavors do so publicly.

    Returns:
        What ``mlflow.pyfunc.add_to_model`` takes for them.
    """
    from mlflow.utils.environment import _mlflow_conda_env, _PythonEnv

    _mlflow_conda_env(str(folder / "conda.yaml"), additional_pip_deps=list(requirements), install_mlflow=False)  # type: ignore[no-untyped-call]
    _PythonEnv.current().to_yaml(str(folder / "python_env.yaml"))  # type: ignore[no-untyped-call]
    (folder / "requirements.txt").write_text("\n".join(requirements), encoding="utf-8")
    return {"conda_env": "conda.yaml", "python_env": "python_env.yaml"}


def migrations_folder() -> Path:
    """Return the folder of the scripts that upgrade MLflow's database: no public name lists the versions of its schema."""
    package = find_spec("mlflow")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "store" / "db_migrations"
