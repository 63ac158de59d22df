"""MLflow's store: its address, and creating it once when several processes start."""

import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bigstep.errors import ProjectError
from bigstep.runtime.environment import TRACKING_URI, read_variable
from bigstep.runtime.file_locks import exclusive_lock
from bigstep.runtime.import_lock import import_lock
from bigstep.tracking.mlflow_internals import forget_engine

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "connect",
    "open_client",
    "open_experiment",
    "reachable",
    "set_aside_unused",
    "sqlite_file",
    "tracking_uri",
    "without_login",
    "without_password",
]

log = logging.getLogger(__name__)
START_SECONDS = 10.0  # a server that is just starting is waited for
RELATIVE = re.compile(  # a database, a folder as an address, a bare folder; not Databricks, which MLflow knows by bare names
    r"(?P<kind>sqlite[^:/]*:///(?!/|:memory:|file:)|file:(?!/)|(?!(?:databricks(?:-uc)?|uc)$)(?=[^:/]+(?:/|$)))(?P<path>.+)"
)
PASSING = re.compile("locked|full|disk I/O|unable to open")  # errors of SQLite that end without a repair of the file


def tracking_uri(root: Path) -> str:
    """Return ``$MLFLOW_TRACKING_URI``, else a database in the project's root; always absolute.

    A relative path is one below the root: stages of a private copy run in its folder, and have the project's store.
    """
    given = read_variable(TRACKING_URI)
    if not given:
        return f"sqlite:///{root.resolve() / 'mlflow.db'}"
    found = RELATIVE.fullmatch(given)
    return given if found is None else f"{found['kind']}{root.resolve() / found['path']}"


def open_client(uri: str) -> "MlflowClient":
    """Connect; an SQLite database is created or upgraded by one process while the others wait (they would break it).

    Raises:
        ProjectError: MLflow cannot open the database although it contains runs; it is not changed.
    """
    with import_lock:
        import mlflow

    mlflow.set_tracking_uri(uri)
    path = sqlite_file(uri)
    with _alone(uri):
        try:
            return _answering(uri)
        except Exception as error:
            if set_aside_unused(path):
                forget_engine(uri)
                return _answering(uri)
            if path is None or not path.exists() or PASSING.search(str(error)):
                raise
            raise _does_not_open(path, error) from None


def _does_not_open(path: Path, error: Exception) -> ProjectError:
    cause = str(error).splitlines()[0][:120].partition(". ")[0]
    return ProjectError(f"MLflow cannot open {path}: {cause}; it may contain runs and was not changed: run `bigstep doctor`")


def _answering(uri: str) -> "MlflowClient":
    import mlflow

    client = mlflow.MlflowClient(uri)
    client.search_experiments(max_results=1)
    return client


def connect(
    uri: str, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> "MlflowClient":
    """Connect as :func:`open_client` does, with patience for a server that is just starting.

    Args:
        uri: of the store.
        clock: seconds, by which it loses patience.
        sleep: waits between two tries.

    Raises:
        ProjectError: it does not answer; one line, without a password that the address may hold.
    """
    deadline = clock() + START_SECONDS
    while True:
        try:
            return open_client(uri)
        except _unanswered(OSError) as error:
            if clock() > deadline:
                raise _unreachable(uri, error) from None
            sleep(1.0)


@contextmanager
def reachable(uri: str) -> Iterator[None]:
    """Within the block an error of MLflow or its database is one line; one of files is not.

    Raises:
        ProjectError: the store does not answer; without a password that the address may hold.
    """
    try:
        yield
    except _unanswered(ConnectionError) as error:
        raise _unreachable(uri, error) from None


def _unanswered(other: type[Exception]) -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, other


def _unreachable(uri: str, error: Exception) -> ProjectError:
    cause = (without_login(str(error)).splitlines() or [type(error).__name__])[0][:200]
    return ProjectError(f"MLflow is unreachable at {without_login(uri)}: {cause}; start it, or fix $MLFLOW_TRACKING_URI")


def without_login(text: str) -> str:
    """Return a text with the user name and password of each address in it left out."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def without_password(address: str) -> str:
    """Return a database's address with ``***`` for its password, and without one among its options; others as they are."""
    if "://" not in address:
        return address
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        return f"{address.partition('://')[0]}://***"  # it may hold a password anywhere
    secret = [name for name in url.query if "password" in name.lower()]
    if url.password is None and not secret:
        return address
    return url.difference_update_query(secret).render_as_string(hide_password=True)


def set_aside_unused(path: Path | None) -> bool:
    """Rename an SQLite database that holds no run and no model, as a process leaves it that is killed while it creates one.

    Returns:
        Whether it was renamed; False if there is no such file, or it contains something or cannot be read.
    """
    if path is None or not path.exists() or _holds_work(path):
        return False
    kept = path.with_name(f"{path.name}.half-made-{time.strftime('%Y%m%d-%H%M%S')}")
    for suffix in ("-journal", "-wal", "-shm", ""):  # SQLite would apply a journal to the new database
        if (part := path.with_name(path.name + suffix)).exists():
            part.rename(kept.with_name(kept.name + suffix))
    log.warning("%s was created only in part and held no run; it is kept as %s, and a new one is created", path.name, kept.name)
    return True


def _holds_work(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            wanted = tables & {"runs", "registered_models", "logged_models"}
            own = "experiments" in tables and connection.execute("SELECT COUNT(*) FROM experiments").fetchone()[0] > 1
            return own or any(connection.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in wanted)  # noqa: S608
    except sqlite3.DatabaseError:
        return True


def open_experiment(client: "MlflowClient", uri: str, name: str, tags: Mapping[str, str] | None = None) -> str:
    """Return the id of the experiment ``name``, which is created at first; artifacts lie beside an SQLite database.

    Args:
        client: of the store.
        uri: of the store.
        name: of the experiment.
        tags: of a new experiment.

    Raises:
        ProjectError: the experiment was deleted: MLflow then keeps its name, and takes no runs.
    """
    with _alone(uri):
        known = _find_experiment(client, name)
        if known is not None:
            return known
        database = sqlite_file(uri)
        location = None if database is None else (database.parent / "mlruns").as_uri()
        kind = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(name, artifact_location=location, tags={**kind, **(tags or {})}))
        except Exception as error:
            exists = getattr(error, "error_code", None) == "RESOURCE_ALREADY_EXISTS"  # made by another machine just now
            known = _find_experiment(client, name) if exists else None
            if known is None:
                raise
            return known


def _find_experiment(client: "MlflowClient", name: str) -> str | None:
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != "active":
        raise ProjectError(
            f"tracking.experiment: expected an experiment that exists, got {name}, which was deleted in MLflow; "
            f"run `mlflow experiments restore -x {found.experiment_id}`, or name another"
        )
    return None if found is None else str(found.experiment_id)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    with exclusive_lock(database.with_name(f"{database.name}.lock")):
        yield


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite database, absolute; None for one in memory, and for any other address."""
    from sqlalchemy.engine import make_url

    name = make_url(uri).database if uri.startswith("sqlite") else None
    return None if name in (None, "", ":memory:") else Path(str(name)).absolute()
