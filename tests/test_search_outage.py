"""`bigstep search` on a PostgreSQL server that is away: at the start, and while a trial trains."""

import os
import signal
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial

from bigstep.errors import ProjectError
from bigstep.search.patience import OUTAGE, patiently
from bigstep.search.storage import open_storage, open_study
from bigstep.search.studies import confirmation_study_name
from bigstep.search.trial_queue import counts_toward_budget
from faults.project import Project
from postgres import postgres_server
from searching import searching_project, wait_until_it_trains
from serving import unused_port
from waiting import Clock, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")]
QUICK = (
    "train.epochs=4",
    "model.width=8",
    "search.confirm_top=1",
    "search.confirm_seeds=1",
    "hardware.checkpoint_interval=0.2s",
)
TRIALS, AWAY = 5, "the study's storage does not answer"


@pytest.fixture
def project(tmp_path: Path, prepared_root: Path, plans: Path) -> Project:
    return searching_project(tmp_path / "project", prepared_root, plans, *QUICK)


def _wait_until_noticed(project: Project, workers: int, times: int = 1) -> None:
    """Each worker finds out by itself: when it next needs the storage."""

    def noticed() -> bool:
        return sum(text.count(AWAY) >= times for text in _logs(project)) >= workers

    wait_until(noticed, "a worker did not miss the storage")


def _trials(address: str, name: str) -> list[FrozenTrial]:
    storage = open_storage(address)
    trials = optuna.load_study(study_name=name, storage=storage).get_trials()
    storage.remove_session()
    storage.engine.dispose()  # type: ignore[attr-defined] # of an RDBStorage
    return trials


def _logs(project: Project) -> list[str]:
    """Return what each worker printed."""
    logs = (project.root / ".bigstep" / "search").rglob("worker-*.log")
    return [path.read_text(encoding="utf-8") for path in logs]


@pytest.mark.long
def test_a_search_outlives_a_crash_of_its_database_and_stopped_meanwhile_is_completed_later(
    project: Project,
) -> None:
    command = ("search", "--trials", str(TRIALS), "--workers", "2", "--storage")
    with postgres_server() as server:
        process = project.start(
            sys.executable, "-m", "bigstep.cli", *command, server.address, PYTHONPATH=str(project.root / "src")
        )
        epochs = wait_until_it_trains(server.address, process)
        server.stop("immediate")
        _wait_until_noticed(project, 2)
        assert process.poll() is None, "the search ended while its database was away"
        server.start()
        wait_until_it_trains(server.address, process, after=epochs)
        server.stop("immediate")
        _wait_until_noticed(project, 1, times=2)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert "Traceback" not in "".join([output, *_logs(project)])
        assert "winner" not in output
        server.start()
        output = project.bigstep(*command, server.address)
        found = {name: _trials(server.address, name) for name in ("search", confirmation_study_name("search"))}
    assert "winner: trial" in output
    assert len(counts_toward_budget(found["search"])) == TRIALS
    assert [trial for trials in found.values() for trial in trials if not trial.state.is_finished()] == []
    assert "Traceback" not in "".join([output, *_logs(project)])
    runs = {run.info.run_id: run.info.status for run in project.runs()}
    assert "RUNNING" not in runs.values()
    assert {runs[trial.user_attrs["mlflow_run_id"]] for trial in counts_toward_budget(found["search"])} == {"FINISHED"}


def test_what_needs_a_storage_is_done_again_until_it_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with postgres_server() as server:
        storage, clock = open_storage(server.address), Clock()
        study = open_study(storage, "study", ["minimize"])
        server.stop("immediate")
        with pytest.raises(ProjectError, match=r"search\.storage: expected an answer from postgresql") as caught:
            patiently(study.get_trials, server.address, clock=clock, sleep=clock.sleep)
        assert len(str(caught.value).splitlines()) == 1
        assert "secret" not in str(caught.value)
        assert clock.now == 100.0 + OUTAGE
        assert patiently(study.get_trials, server.address, sleep=lambda _: server.start()) == []
        storage.remove_session()
        storage.engine.dispose()  # type: ignore[attr-defined] # of an RDBStorage
    assert capsys.readouterr().out.count("the study's storage does not answer") == 2


def test_a_database_that_is_away_at_the_start_is_one_line(project: Project) -> None:
    address = f"postgresql://study:secret@127.0.0.1:{unused_port()}/postgres"
    code = (
        "import sys; from bigstep.search import storage; storage.START_SECONDS = 0.0; "  # to wait for one that is starting
        "from bigstep.cli import main; raise SystemExit(main(sys.argv[1:]))"
    )
    command = (sys.executable, "-c", code, "search", "--trials", "2", "--workers", "1", "--storage", address)
    output = project.run(*command, code=2, PYTHONPATH=str(project.root / "src"))
    assert "Traceback" not in output
    assert "secret" not in output
    lines = [line for line in output.splitlines() if line.startswith("bigstep: ")]
    assert len(lines) == 1
    assert "search.storage: expected an answer from postgresql" in lines[0]
