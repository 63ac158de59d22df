"""MLflow's store: where it is, and that it is created once, whoever comes first."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["file_lock", "open_client", "open_experiment", "tracking_uri"]

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ALLOW_MODEL_CODE_EXECUTION", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is gone is tried again by the courier
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


def tracking_uri(root: Path) -> str:
    """Give ``$MLFLOW_TRACKING_URI``, else a database in the project's root; always absolute."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def open_client(uri: str) -> "MlflowClient":
    """Connect; an SQLite database is created or upgraded by one process while the others wait (they would break it)."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    with _alone(uri):
        client = mlflow.MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def open_experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """Give the id of the experiment ``name``, which is created at first; artifacts lie beside an SQLite database."""
    with _alone(uri):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        database = _database(uri)
        location = None if database is None else (database.parent / "mlruns").as_uri()
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(client.create_experiment(name, artifact_location=location, tags=tags))


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; the system drops it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    database = _database(uri)
    if database is None:
        yield
        return
    with file_lock(database.with_name(f"{database.name}.lock")):
        yield


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
