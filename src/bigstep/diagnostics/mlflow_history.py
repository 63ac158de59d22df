"""What is wrong with MLflow's history: its database, unsent data, runs whose process has ended."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from bigstep.diagnostics.finding import Problem, Quarantine
from bigstep.project.paths import ProjectPaths
from bigstep.runs.tracked_run import deliver_others
from bigstep.tracking.database import set_aside_unused, sqlite_file, tracking_uri
from bigstep.tracking.dead_runs import end_dead_runs
from bigstep.tracking.mlflow_internals import migrations_folder
from bigstep.tracking.spool import is_in_use, unfinished_spools

__all__ = ["find_database", "find_runs", "schema_state"]


def find_database(uri: str, aside: Quarantine) -> Iterator[Problem]:
    """Check that MLflow's database is intact and has the schema of the installed MLflow."""
    path = _database(uri)
    if path is None:
        return
    answer, state = _answer(path), schema_state(path)
    if answer.startswith("busy"):
        yield Problem(f"{path} is locked: {answer}; stop the program that uses it", None)
    elif answer != "ok":
        yield Problem(f"{path} is damaged: {answer}", lambda: f"{aside.move(path)}; a new one is made at the next start")
    elif state == "older":
        yield Problem(f"{path} has the schema of an older MLflow", lambda: _upgrade(uri, path, aside))
    elif state == "half made":
        yield Problem(
            f"{path} was created only in part: it has tables, but no schema version", lambda: _upgrade(uri, path, aside)
        )
    elif state == "unknown":
        yield Problem(f"{path} has a schema that MLflow {version('mlflow')} does not know; install the one that wrote it", None)


def _database(uri: str) -> Path | None:
    path = sqlite_file(uri)
    return path if path is not None and path.exists() else None


def _answer(path: Path) -> str:
    """Return what SQLite's own integrity check says."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
            return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        return f"busy, {error}"
    except sqlite3.DatabaseError as error:
        return str(error)


def schema_state(path: Path) -> str:
    """Compare a schema with that of MLflow: ``current``, ``older``, ``unknown``, ``half made``, or ``none`` to compare."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            versions = connection.execute("SELECT version_num FROM alembic_version") if "alembic_version" in tables else None
            found = None if versions is None else versions.fetchone()
    except sqlite3.DatabaseError:
        return "none"  # held by another, or damaged
    if found is None:
        return "half made" if tables - {"alembic_version"} else "none"
    return _place(found[0])


def _place(revision: str) -> str:
    from alembic.script import ScriptDirectory
    from alembic.util.exc import CommandError

    scripts = ScriptDirectory(str(migrations_folder()))
    if revision in scripts.get_heads():
        return "current"
    try:
        return "unknown" if scripts.get_revision(revision) is None else "older"
    except CommandError:
        return "unknown"


def _upgrade(uri: str, path: Path, aside: Quarantine) -> str:
    """Bring the schema up to date; the database of before is kept."""
    aside.folder.mkdir(parents=True, exist_ok=True)
    kept = aside.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{path.name}"
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(kept)) as target:
        source.backup(target)
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "db", "upgrade", uri], capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode and set_aside_unused(path):
        return "it contained no run; a new one is created at the next start"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        why = lines[-1] if lines else done.returncode
        return f"`mlflow db upgrade` failed ({why}); as it was: {kept}; to start a new history, move {path} away"
    return f"upgraded; as it was: {kept}"


def find_runs(project: ProjectPaths) -> Iterator[Problem]:
    """Find runs with unsent data, and runs whose process has ended."""
    path = _database(tracking_uri(project.root))
    if path is not None and (_answer(path) != "ok" or schema_state(path) not in ("current", "none")):
        return  # MLflow opens no such database; reported above
    folders = [project.spools, *sorted(project.search.glob("*/spools"))]
    waiting = [path for folder in folders for path in unfinished_spools(folder) if not is_in_use(path)]
    if waiting:
        names = ", ".join(path.name for path in waiting)
        yield Problem(f"runs with unsent MLflow data: {names}", lambda: _deliver(folders))
    dead = end_dead_runs(project.root, end=False)
    if dead:
        yield Problem(
            f"runs marked RUNNING whose process no longer exists: {', '.join(dead)}",
            lambda: f"ended as KILLED: {len(end_dead_runs(project.root, end=True))}",
        )


def _deliver(folders: Sequence[Path]) -> str:
    done = [name for folder in folders for name in deliver_others(folder)]
    left = sum(len(unfinished_spools(folder)) for folder in folders)
    return f"sent {len(done)}" + (f"; {left} are in use by a process, or MLflow is unreachable" if left else "")
