import getpass
import inspect
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from bigstep.config.params import flatten, parse_params
from bigstep.errors import ProjectError
from bigstep.tracking.database import open_client, open_experiment, sqlite_file, tracking_uri, without_password
from bigstep.tracking.mlflow_tracker import MODEL_URI_TAG, MlflowTracker, open_run
from bigstep.tracking.model_registry import promote
from bigstep.tracking.runs_view import viewed_experiments
from bigstep.tracking.tracker import NullTracker, Tracker
from contracts import TrackerContract
from recording import RecordingTracker


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_the_null_tracker_has_every_method_of_a_tracker_and_keeps_nothing() -> None:
    names = [name for name, item in vars(Tracker).items() if inspect.isfunction(item) and not name.startswith("_")]
    assert len(names) == 7
    tracker = NullTracker()
    for name in names:
        signature = inspect.signature(getattr(Tracker, name))
        assert inspect.signature(getattr(NullTracker, name)) == signature, name
        assert getattr(tracker, name)(*[object()] * (len(signature.parameters) - 1)) is None
    assert vars(tracker) == {}


class TestRecordingTracker(TrackerContract):
    def make(self, folder: Path) -> Tracker:
        del folder
        return RecordingTracker()

    def values(self, tracker: RecordingTracker) -> dict[str, Any]:
        return {
            "params": tracker.params,
            "metrics": [(metric.key, metric.value, metric.step) for metric in tracker.metrics],
            "tags": tracker.tags,
            "files": tracker.files,
            "datasets": [dataset.name for dataset in tracker.datasets],
            "status": tracker.status,
        }


@pytest.mark.slow
class TestMlflowTracker(TrackerContract):
    @pytest.fixture(autouse=True)
    def store(self, uri: str) -> None:
        self.uri = uri

    def make(self, folder: Path) -> Tracker:
        del folder
        return open_run(self.uri, run_id=None, experiment="contract")

    def values(self, tracker: MlflowTracker) -> dict[str, Any]:
        run = tracker.client.get_run(tracker.run_id)
        folders = [item.path for item in tracker.client.list_artifacts(tracker.run_id)]
        history = tracker.client.get_metric_history(tracker.run_id, "loss") if "loss" in run.data.metrics else []
        return {
            "params": run.data.params,
            "metrics": [(item.key, item.value, item.step) for item in sorted(history, key=lambda item: item.step)],
            "tags": run.data.tags,
            "files": [item.path for folder in folders for item in tracker.client.list_artifacts(tracker.run_id, folder)],
            "datasets": [item.dataset.name for item in run.inputs.dataset_inputs],
            "status": run.info.status,
        }

    def test_a_run_is_continued_and_a_lost_one_begun_anew(self) -> None:
        first = open_run(self.uri, run_id=None, experiment="x")
        first.finish("FINISHED")
        again = open_run(self.uri, run_id=first.run_id, experiment="y")
        assert again.run_id == first.run_id
        assert again.client.get_run(first.run_id).info.status == "RUNNING"
        lost = open_run(self.uri, run_id="0" * 32, experiment="x")
        assert lost.run_id != "0" * 32

    def test_artifacts_lie_beside_the_database_wherever_the_process_runs(self, tmp_path: Path) -> None:
        tracker = open_run(self.uri, run_id=None, experiment="place")
        location = tracker.client.get_run(tracker.run_id).info.artifact_uri
        assert location.startswith((tmp_path / "mlruns").as_uri())


def _model_run(uri: str, loss: float, digest: str, weights: str) -> MlflowTracker:
    tracker = open_run(uri, run_id=None, experiment="models")
    model = tracker.client.create_logged_model(
        tracker.client.get_run(tracker.run_id).info.experiment_id, "model", tracker.run_id
    )
    tracker.set_tags(
        {
            MODEL_URI_TAG: f"models:/{model.model_id}",
            "bigstep.weights_sha256": weights,
            "bigstep.validation_digest": digest,
            "bigstep.val_loss": repr(loss),
        }
    )
    return tracker


@pytest.mark.slow
def test_the_champion_moves_only_to_a_better_model_on_the_same_data(uri: str) -> None:
    client = open_client(uri)
    cases = [(0.5, "d1", True), (0.6, "d1", False), (0.4, "d2", False), (0.4, "d1", True), (0.4, "d1", False)]
    champion = None
    for number, (loss, digest, wins) in enumerate(cases):
        tracker = _model_run(uri, loss, digest, f"w{number}")
        promotion = promote(client, tracker.run_id, "name", metric="val_loss", smaller_is_better=True)
        assert promotion is not None
        assert promotion.is_champion is wins, promotion.reason
        champion = promotion.version if wins else champion
        assert client.get_model_version_by_alias("name", "challenger").version == int(promotion.version)
        assert client.get_model_version_by_alias("name", "champion").version == int(champion or 0)
        again = promote(client, tracker.run_id, "name", metric="val_loss", smaller_is_better=True)
        assert again is not None
        assert again.version == promotion.version, "registered twice"
    without = open_run(uri, run_id=None, experiment="models")
    assert promote(client, without.run_id, "name", metric="val_loss", smaller_is_better=True) is None


def test_a_new_experiment_has_a_view_of_its_runs_and_one_of_somebody_elses_study_has_none(uri: str) -> None:
    run = open_run(uri, run_id=None, experiment="models")
    client = open_client(uri)
    open_experiment(client, uri, "study")
    number = client.get_run(run.run_id).info.experiment_id
    found = viewed_experiments(client, "http://127.0.0.1:5000")
    assert found == [("models", f"http://127.0.0.1:5000/#/experiments/{number}/runs?viewStateShareKey=scores")]
    (view,) = (json.loads(value) for key, value in client.get_experiment(number).tags.items() if "sharedViewState" in key)
    columns = json.loads(view["state"])["selectedColumns"]
    known = {*flatten(parse_params({}))}
    assert {name for name in columns if name.startswith("params")} <= {f"params.`{name}`" for name in known}


def test_an_experiment_of_before_gets_the_view_once_beside_the_users_own(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_client(uri)
    own = "mlflow.sharedViewState.mine"
    number = client.create_experiment("models", tags={own: "{}"})
    open_run(uri, run_id=None, experiment="models")
    tags = client.get_experiment(number).tags
    assert tags[own] == "{}"
    assert json.loads(tags["mlflow.sharedViewState.scores"])["name"] == "Scores first"
    client.delete_experiment_tag(number, "mlflow.sharedViewState.scores")  # as the page does; it does not come back
    monkeypatch.setattr(MlflowClient, "set_experiment_tag", lambda *_: pytest.fail("it had the view already"))
    open_run(uri, run_id=None, experiment="models")


def test_a_store_that_refuses_tags_of_experiments_still_has_runs(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = open_client(uri).create_experiment("models")

    def refuse(*_: object) -> None:
        raise MlflowException("404: no such call")

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    run = open_run(uri, run_id=None, experiment="models")
    assert run.client.get_run(run.run_id).info.experiment_id == number


def test_a_deleted_experiment_is_one_line_with_the_way_out(uri: str) -> None:
    client = open_client(uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(
        ProjectError, match=r"^tracking\.experiment: expected .*, got gone, .*`mlflow experiments restore -x 1`"
    ):
        open_experiment(client, uri, "gone")


class _Late(MlflowClient):
    """Looks for an experiment that another machine, with which it shares no lock, creates right after."""

    def get_experiment_by_name(self, name: str) -> Any:
        found = super().get_experiment_by_name(name)
        if found is None:
            self.create_experiment(name)
        return found


def test_an_experiment_that_another_machine_has_just_created_is_used(uri: str) -> None:
    client = open_client(uri)
    experiment_id = open_experiment(_Late(uri), uri, "shared")
    assert client.get_experiment(experiment_id).name == "shared"


def test_a_user_without_a_name_as_in_a_container_has_runs(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987654321)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    run = open_run(uri, run_id=None, experiment="x")
    tags = run.client.get_run(run.run_id).data.tags
    assert "mlflow.user" not in tags
    assert tags["mlflow.source.name"] == "bigstep"


def _first_use(uri: str) -> str:
    client = open_client(uri)
    return open_experiment(client, uri, "shared")


@pytest.mark.slow
def test_four_processes_on_a_new_store_all_succeed(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        ids = pool.map(_first_use, [uri] * 4)
    assert len(set(ids)) == 1


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite:////a/b.db?timeout=60", "/a/b.db"),
        ("sqlite+pysqlite:////a/b c.db", "/a/b c.db"),
        ("sqlite:///b.db", "{folder}/b.db"),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("http://127.0.0.1:5000", None),
        ("postgresql://user:secret@host/b.db", None),
        ("mlruns", None),
    ],
)
def test_the_file_of_a_database_is_found_as_sqlalchemy_does(
    uri: str, path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sqlite_file(uri) == (None if path is None else Path(path.format(folder=tmp_path)))


def test_the_store_is_the_environments_or_the_projects_always_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(Path()) == f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{root}/mlflow.db"),
        ("sqlite+pysqlite:///runs/a b.db?timeout=60", "sqlite+pysqlite:///{root}/runs/a b.db?timeout=60"),
        ("file:mlruns", "file:{root}/mlruns"),
        ("./mlruns", "{root}/mlruns"),
        ("mlruns", "{root}/mlruns"),
        *((same, same) for same in ("sqlite:////a/b.db", "sqlite:///:memory:", "sqlite://", "/a/mlruns", "file:///a/mlruns")),
        *((same, same) for same in ("http://127.0.0.1:5000", "postgresql://user:secret@host/b.db", "databricks", "uc")),
    ],
)
def test_a_relative_store_is_below_the_project_wherever_a_stage_runs(
    given: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking_uri(tmp_path) == expected.format(root=tmp_path)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("postgresql://me:sec/ret@host:5432/d", "postgresql://me:***@host:5432/d"),
        ("postgresql+psycopg://me@host/d?password=secret&sslmode=require", "postgresql+psycopg://me@host/d?sslmode=require"),
        ("postgresql://me:secret@host:port/d", "postgresql://***"),
        *((same, same) for same in ("postgresql://me@host/d?sslmode=require", "study.journal", "sqlite:///a b.db")),
    ],
)
def test_a_databases_address_is_shown_without_its_password(address: str, expected: str) -> None:
    assert without_password(address) == expected
