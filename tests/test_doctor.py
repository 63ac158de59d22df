"""`bigstep doctor` on histories and studies that something left in disorder."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from bigstep.diagnostics.doctor import doctor, examine
from bigstep.diagnostics.finding import Quarantine
from bigstep.diagnostics.mlflow_history import find_runs, schema_state
from bigstep.diagnostics.state_files import find_state_files
from bigstep.errors import ProjectError
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.process_identity import process_name
from bigstep.search.storage import open_storage, open_study
from bigstep.search.trial_queue import WORKER, TrialQueue
from bigstep.search.trial_record import TrialRecord
from bigstep.tracking.database import open_client
from bigstep.tracking.dead_runs import PROCESS, claim_given_run
from bigstep.tracking.spool import Spool, spool_lock
from dvc_dependencies import ROOT


def _texts(root: Path, *words: str) -> list[str]:
    return [finding.text for finding in examine(root) if any(word in finding.text for word in words)]


@pytest.fixture
def root(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return tmp_path


def _older(path: Path) -> None:
    """Make a database as the MLflow before the last change of its schema left it."""
    import sqlalchemy
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    path.unlink()
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{path}")
    scripts = ScriptDirectory.from_config(config)
    before = scripts.get_revision(scripts.get_heads()[0]).down_revision
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, before)
    engine.dispose()


def test_the_schema_of_an_older_mlflow_is_brought_up_to_date_and_the_old_one_kept(root: Path) -> None:
    _older(root / "mlflow.db")
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        connection.execute("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'mine', 'active')")
        connection.commit()
    assert len(_texts(root, "schema")) == 1
    doctor(root, fix=True)
    assert schema_state(root / "mlflow.db") == "current"
    assert not _texts(root, "schema")
    (kept,) = (root / ".bigstep" / "set-aside").glob("*-mlflow.db")
    assert schema_state(kept) == "older"
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        assert connection.execute("SELECT name FROM experiments WHERE experiment_id = 7").fetchone() == ("mine",)


def test_a_schema_that_nobody_knows_is_told_and_left_alone(root: Path) -> None:
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of the future'")
        connection.commit()
    (finding,) = [item for item in examine(root) if "schema" in item.text]
    assert finding.repair is None
    assert "install the one that wrote it" in finding.text


def test_a_damaged_database_is_told_once_and_set_aside(root: Path) -> None:
    content = bytearray((root / "mlflow.db").read_bytes())
    content[:64] = b"x" * 64
    (root / "mlflow.db").write_bytes(content)
    assert len(_texts(root, "mlflow.db")) == 1
    doctor(root, fix=True)
    assert not _texts(root, "is damaged")


@pytest.mark.parametrize(
    ("old", "new", "is_torn"),
    [("", "", False), ("schema: '2.0'", "schema: '2.0", True), ("size:", "size: x", True), ("stages:", "stages: {", True)],
)
def test_a_lock_of_dvc_that_is_yaml_and_no_lock_is_torn_too(root: Path, old: str, new: str, is_torn: bool) -> None:
    text = (ROOT / "dvc.lock").read_text(encoding="utf-8")
    assert old in text
    (root / "dvc.lock").write_text(text.replace(old, new, 1), encoding="utf-8")
    assert bool(_texts(root, "dvc.lock is damaged")) is is_torn


@pytest.mark.parametrize(("found", "is_older"), [("2.10rc1", True), ("2.9.1", True), ("2.10", False), ("2.14.1+cpu", False)])
def test_a_release_with_known_vulnerabilities_is_named(
    found: str, is_older: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate of the first sound release is older than that release."""
    folder = tmp_path / "installed" / f"torch-{found}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {found}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder.parent)
    text = f"torch {found} has known vulnerabilities; install 2.10 or later"
    assert [finding.text for finding in examine(root) if finding.text.startswith("torch ")] == [text] * is_older


def _dead_process() -> str:
    code = "from bigstep.runtime.process_identity import process_name; print(process_name())"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_a_torn_journal_and_a_trial_of_a_dead_worker_are_put_right(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ProjectPaths(root).search / "search.journal"
    study = open_study(open_storage(str(path)), "search", ["minimize"])
    ledger = TrialQueue(study, 5, 50)
    ledger.enqueue_once("start-0", {"x": 0.5}, TrialRecord())
    trial = ledger.take(None)
    assert trial is not None
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr(WORKER, _dead_process())
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 9, "worker')
    assert len(_texts(root, "incomplete operation")) == 1
    assert path.read_bytes() == whole + b'{"op_code": 9, "worker', "looking changes nothing"
    doctor(root, fix=True)
    assert "1; the next search retries them" in capsys.readouterr().out
    states = [item.state for item in optuna.load_study(study_name="search", storage=open_storage(str(path))).get_trials()]
    assert states == [TrialState.FAIL, TrialState.WAITING]
    assert [finding.text for finding in examine(root) if finding.repair is not None] == []


def test_a_trial_of_a_living_worker_is_left_alone(root: Path) -> None:
    path = ProjectPaths(root).search / "search.journal"
    ledger = TrialQueue(open_study(open_storage(str(path)), "search", ["minimize"]), 5, 50)
    ledger.enqueue_once("start-0", {"x": 0.5}, TrialRecord())
    assert ledger.take(None) is not None
    assert not _texts(root, "RUNNING")


def test_what_is_no_journal_is_set_aside(root: Path) -> None:
    path = ProjectPaths(root).search / "search.journal"
    path.parent.mkdir(parents=True)
    path.write_text("no operation at all\n", encoding="utf-8")
    doctor(root, fix=True)
    assert not path.exists()
    assert len(list((root / ".bigstep" / "set-aside").glob("*search.journal"))) == 1


def _half_made(path: Path) -> None:
    """Kill a process while it creates the tables of MLflow's database."""
    path.unlink(missing_ok=True)
    code = f"from bigstep.tracking.database import open_client; open_client('sqlite:///{path}')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if schema_state(path) == "older" or (path.exists() and path.stat().st_size > 50_000):
            process.kill()
            process.wait()
    assert process.returncode == -9, "the database was complete before the kill"


@pytest.mark.slow
def test_a_database_that_was_half_made_is_set_aside_by_the_next_start(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    _half_made(root / "mlflow.db")
    client = open_client(f"sqlite:///{root / 'mlflow.db'}")
    assert client.create_run("0").info.status == "RUNNING"
    assert schema_state(root / "mlflow.db") == "current"
    if list(root.glob("mlflow.db.half-made-*")):  # a kill between two migrations leaves what MLflow completes by itself
        assert "was created only in part and held no run" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("by", ["doctor", "the next start"])
def test_tables_of_an_unfinished_migration_are_set_aside(by: str, root: Path) -> None:
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:  # all tables, and an early revision
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        connection.commit()
    assert schema_state(root / "mlflow.db") == "older"
    if by == "doctor":
        doctor(root, fix=True)
        assert not _texts(root, "schema")
    open_client(f"sqlite:///{root / 'mlflow.db'}").create_run("0")
    assert schema_state(root / "mlflow.db") == "current"


def _hold_a_run_half_made(path: Path, how: str) -> None:
    open_client(f"sqlite:///{path}").create_run("0")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(how)
        connection.commit()


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        "DROP TABLE datasets; DROP TABLE alembic_version",  # MLflow begins again, and finds its tables
        "UPDATE alembic_version SET version_num = '451aebb31d03'",
    ],
)
def test_a_half_made_database_that_holds_runs_is_one_line_and_is_left_alone(
    how: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "half.db"  # MLflow does not look again at a file that it has open
    _hold_a_run_half_made(root / "mlflow.db", how)
    shutil.copyfile(root / "mlflow.db", path)
    with pytest.raises(ProjectError) as caught:
        open_client(f"sqlite:///{path}")
    message = str(caught.value)
    assert message.startswith(f"MLflow cannot open {path}: ")
    assert "`bigstep doctor`" in message
    assert len(message.splitlines()) == 1
    assert not list(root.glob("half.db.half-made*"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    assert doctor(root, fix=True) == 4
    assert f"to start a new history, move {path} away" in capsys.readouterr().out
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM runs").fetchone() == (1,)


def test_a_repair_that_failed_is_not_called_done(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        connection.execute("INSERT INTO experiments (experiment_id, name) VALUES (7, 'mine')")
        connection.commit()
    assert doctor(root, fix=True) == 4
    output = capsys.readouterr().out
    assert "not repaired" in output
    assert "no problems" not in output
    assert "all problems" not in output


def test_a_run_of_mlflow_run_has_its_process_from_the_start_and_dead_ones_end(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill before the stage train left a run RUNNING for ever."""
    client = open_client(f"sqlite:///{root / 'mlflow.db'}")
    dead, own = (client.create_run("0").info.run_id for _ in range(2))
    client.set_tag(dead, PROCESS, _dead_process())
    claim_given_run(root)
    assert PROCESS not in client.get_run(own).data.tags
    monkeypatch.setenv("MLFLOW_RUN_ID", own)
    claim_given_run(root)
    assert client.get_run(own).data.tags[PROCESS] == process_name()
    assert [client.get_run(run).info.status for run in (dead, own)] == ["KILLED", "RUNNING"]


def test_a_journal_that_a_run_writes_to_is_left_alone(tmp_path: Path) -> None:
    """Its last line may be half there for an instant."""
    folder = ProjectPaths(tmp_path).spools / "key.1"
    with spool_lock(folder) as alone, closing(Spool(folder)) as spool, spool.path.open("ab", 0) as file:
        assert alone
        file.write(b'{"entry": "tags", ')
        (found,) = find_state_files(ProjectPaths(tmp_path), Quarantine(tmp_path / "aside"))
        assert found.repair is not None
        assert found.repair() == "left alone: a process is writing to it"
        file.write(b'"values": {"a": "1"}}\n')
        assert [entry["values"] for entry, _ in spool.entries()] == [{"a": "1"}]


def test_a_run_that_is_in_progress_is_no_problem_and_one_that_was_left_is(tmp_path: Path) -> None:
    project = ProjectPaths(tmp_path)
    folder = project.spools / "key.1"
    with spool_lock(folder) as alone, closing(Spool(folder)) as spool:
        assert alone
        spool.append({"entry": "tags", "values": {"a": "1"}})
        assert list(find_runs(project)) == []
    assert [item.text for item in find_runs(project)] == ["runs with unsent MLflow data: key.1"]
