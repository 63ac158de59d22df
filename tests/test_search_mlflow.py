import math
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

from bigstep.commands.mlflow_ui import mlflow_command
from bigstep.commands.search import _with_parent
from bigstep.errors import ConfigError
from bigstep.optuna_mlflow import callback as mlflow_callback
from bigstep.optuna_mlflow.callback import RUN_ID, MLflowCallback, describe_trial, link_trial, parent_run, run_of
from bigstep.optuna_mlflow.study_identity import database_name
from bigstep.runtime.environment import SERVER_GUARDS, child_environment
from bigstep.search.request import SearchRequest
from bigstep.search.storage import open_storage
from bigstep.tracking.database import open_client, open_experiment
from dvc_dependencies import ROOT
from serving import unused_port, wait_for_port
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")]
PAGE = (ROOT / "docs" / "mlflow_callback.md").read_text(encoding="utf-8")


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _study(storage: Any = None, name: str = "s", **more: Any) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(storage=storage, study_name=name, load_if_exists=True, sampler=sampler, **more)


def _square(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", -1, 1) ** 2


def _runs(uri: str, experiment: str = "s") -> list[Run]:
    client = open_client(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def _parents(uri: str) -> list[Run]:
    return [run for run in _runs(uri) if "mlflow.parentRunId" not in run.data.tags]


def _children(uri: str, experiment: str = "s") -> list[Run]:
    runs = [run for run in _runs(uri, experiment) if "mlflow.parentRunId" in run.data.tags]
    return sorted(runs, key=lambda run: int(run.data.tags["optuna.trial_number"]))


def _everything(uri: str, experiment: str = "s") -> Any:
    client = open_client(uri)
    histories = [
        sorted((key, item.step, item.value, item.timestamp) for item in client.get_metric_history(run.info.run_id, key))
        for run in _children(uri, experiment)
        for key in sorted(run.data.metrics)
    ]
    facts = [(run.info.run_id, run.info.status, run.info.end_time, run.data.to_dictionary()) for run in _children(uri)]
    return facts, histories


def test_a_trial_is_told_with_all_that_is_known_of_it(uri: str, tmp_path: Path) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        trial.suggest_categorical("kind", ["a", "b"])
        for step in range(3):
            trial.report(x / (step + 1), step * 10)
        trial.set_user_attr("note", {"seen": [1, 2]})
        trial.set_constraint("memory", -5.0)
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 2:
            raise OSError
        return x

    study = _study(open_storage(str(tmp_path / "j")))
    study.enqueue_trial({"x": 0.5, "kind": "b", "unused": 7})
    study.optimize(objective, n_trials=3, callbacks=[MLflowCallback(uri)], catch=OSError)
    (parent,), children = _parents(uri), _children(uri)
    assert parent.info.run_name == "s"
    assert parent.info.status == "FINISHED"
    best = study.best_trial
    assert parent.data.tags["optuna.best_trials"] == str(best.number)
    assert parent.data.tags["optuna.best_value"] == repr(best.value)
    assert study.user_attrs[RUN_ID] == parent.info.run_id
    assert [run.info.run_name for run in children] == ["trial 0", "trial 1, pruned", "trial 2, failed"]
    assert [run.info.status for run in children] == ["FINISHED", "FINISHED", "FAILED"]
    assert [run.data.tags["optuna.state"] for run in children] == ["COMPLETE", "PRUNED", "FAIL"]
    for run, trial in zip(children, study.trials, strict=True):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["optuna.study"] == "s"
        assert run.data.tags["note"] == '{"seen": [1, 2]}'
        assert run.data.metrics["constraint.memory"] == -5.0
        assert run_of(study, trial) == run.info.run_id
        assert run.data.params["x"] == str(trial.params["x"])
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        assert abs(run.info.start_time - trial.datetime_start.timestamp() * 1000) <= 1
        assert abs(run.info.end_time - trial.datetime_complete.timestamp() * 1000) <= 1
        history = open_client(uri).get_metric_history(run.info.run_id, "intermediate_value")
        assert [(item.step, item.value) for item in history] == [
            (step * 10, trial.params["x"] / (step + 1)) for step in range(3)
        ]
    assert children[0].data.params == {"x": "0.5", "kind": "b", "unused": "7"}
    assert children[0].data.metrics["value"] == 0.5
    assert "value" not in children[2].data.metrics


def test_a_history_longer_than_a_message_arrives_whole(uri: str) -> None:
    def objective(trial: optuna.Trial) -> float:
        for step in range(2001):
            trial.report(float(step), step)
        for number in range(250):
            trial.set_user_attr(f"a{number}", number)
        return sum(trial.suggest_float(f"p{number}", 0, 1) for number in range(130))

    study = _study()
    study.optimize(objective, n_trials=1, callbacks=[MLflowCallback(uri)])
    (run,) = _children(uri)
    history = open_client(uri).get_metric_history(run.info.run_id, "intermediate_value")
    assert sorted((item.step, item.value) for item in history) == [(step, float(step)) for step in range(2001)]
    assert run.data.params == {key: str(value) for key, value in study.trials[0].params.items()}
    assert {key: run.data.tags[key] for key in study.trials[0].user_attrs} == {f"a{n}": str(n) for n in range(250)}
    assert run.data.tags["optuna.state"] == "COMPLETE"


def test_an_ordinary_trial_is_one_message(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    real = MlflowClient.log_batch

    def counted(self: MlflowClient, run_id: str, *arguments: Any, **more: Any) -> Any:
        sent.append(run_id)
        return real(self, run_id, *arguments, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)

    def objective(trial: optuna.Trial) -> float:
        for step in range(700):
            trial.report(float(step), step)
        return _square(trial)

    _study().optimize(objective, n_trials=2, callbacks=[MLflowCallback(uri)])
    assert [Counter(sent)[run.info.run_id] for run in _children(uri)] == [1, 1]


def test_what_is_not_finite_is_left_out(uri: str) -> None:
    def objective(trial: optuna.Trial) -> float:
        for step, value in enumerate([1.0, math.nan, math.inf, -math.inf, 2.0]):
            trial.report(value, step)
        trial.set_constraint("memory", math.inf)
        return math.inf if trial.number == 0 else math.nan

    study = _study()
    study.optimize(objective, n_trials=2, callbacks=[MLflowCallback(uri)])
    infinite, failed = _children(uri)
    for run in (infinite, failed):
        assert run.data.metrics == {"intermediate_value": 2.0}
        history = open_client(uri).get_metric_history(run.info.run_id, "intermediate_value")
        assert [(item.step, item.value) for item in history] == [(0, 1.0), (4, 2.0)]
    assert (infinite.info.status, failed.info.status) == ("FINISHED", "FAILED")


@pytest.mark.parametrize(
    ("given", "own", "expected"),
    [
        (("value",), None, {"value_0", "value_1"}),
        (("loss", "seconds"), None, {"loss", "seconds"}),
        (("value",), ["loss", "bytes"], {"loss", "bytes"}),
    ],
)
def test_several_objectives_have_names(uri: str, given: tuple[str, ...], own: list[str] | None, expected: set[str]) -> None:
    study = _study(directions=["minimize", "maximize"])
    if own is not None:
        study.set_metric_names(own)
    study.optimize(
        lambda trial: (_square(trial), float(trial.number)), n_trials=3, callbacks=[MLflowCallback(uri, None, given)]
    )
    for run, trial in zip(_children(uri), study.trials, strict=True):
        assert set(run.data.metrics) == expected
        assert sorted(run.data.metrics.values()) == sorted(trial.values)
    (parent,) = _parents(uri)
    numbers = {int(text) for text in parent.data.tags["optuna.best_trials"].split(", ")}
    assert numbers == {trial.number for trial in study.best_trials}
    assert "optuna.best_value" not in parent.data.tags


def test_names_must_be_as_many_as_objectives(uri: str) -> None:
    study = _study(directions=["minimize"] * 3)
    with pytest.raises(
        ConfigError, match=r"metric_names: expected 3 names, one for each objective, got 2; pass 3, or one"
    ) as error:
        study.optimize(lambda _: (1.0, 2.0, 3.0), n_trials=1, callbacks=[MLflowCallback(uri, None, ("a", "b"))])
    assert "\n" not in str(error.value)
    assert open_client(uri).get_experiment_by_name("s") is None, "something was written"


def test_any_name_and_any_length_is_taken(uri: str) -> None:
    names = ["../x", "a//b", "/", "", "λ (log)", "x" * 300, "mlflow.runName", "optuna.state", "a'b\"c`", "."]

    def objective(trial: optuna.Trial) -> float:
        for name in names:
            trial.suggest_float(name, 0, 1)
            trial.set_user_attr(name, "y" * 9000)
            trial.set_constraint(name, 1.0)
        return 0.0

    study = _study(name='it\'s "a" `name` ' + "n" * 300)
    study.optimize(objective, n_trials=1, callbacks=[MLflowCallback(uri, "s", ("λ!",))])
    (run,) = _children(uri)
    assert run.data.metrics["λ_"] == 0.0
    assert {"x", "a/b", "λ _log_", "x" * 250, "mlflow.runName"} <= set(run.data.params)
    assert run.info.run_name == "trial 0"
    assert run.data.tags["optuna.state"] == "COMPLETE"
    assert run.data.tags["user.mlflow.runName"] == "y" * 8000


def test_telling_again_changes_nothing(uri: str, tmp_path: Path) -> None:
    callback, study = MLflowCallback(uri), _study(open_storage(str(tmp_path / "j")))
    study.optimize(_square, n_trials=3, callbacks=[callback])
    for run in _children(uri):
        open_client(uri).set_tag(run.info.run_id, "mlflow.runName", "a name that a person gave")
    before = _everything(uri)
    assert len(before[0]) == 3
    for trial in study.trials:
        callback(study, trial)
        MLflowCallback(uri)(_study(open_storage(str(tmp_path / "j"))), trial)
    assert callback.catch_up(study, settled_seconds=0) == 0
    assert _everything(uri) == before
    assert len(_parents(uri)) == 1


def test_ask_and_tell_and_a_later_start_go_on_below_the_same_run(uri: str, tmp_path: Path) -> None:
    for _ in range(2):
        study, callback = _study(open_storage(str(tmp_path / "j"))), MLflowCallback(uri)
        trial = study.ask()
        with pytest.raises(ValueError, match="expected a finished trial, got trial"):
            callback(study, study.trials[trial.number])
        callback(study, study.tell(trial, _square(trial)))
    (parent,) = _parents(uri)
    assert [run.data.tags["mlflow.parentRunId"] for run in _children(uri)] == [parent.info.run_id] * 2


def test_a_run_that_is_begun_takes_what_the_objective_logs_and_stands_in_the_trial(uri: str) -> None:
    callback, study = MLflowCallback(uri), _study()

    def objective(trial: optuna.Trial) -> float:
        run_id = callback.begin(trial)
        assert run_id is not None
        assert callback.begin(trial) == run_id
        client = open_client(uri)
        assert client.get_run(run_id).info.status == "RUNNING"
        client.log_param(run_id, "x", "written by the objective")
        client.log_metric(run_id, "epoch_loss", 0.25, step=3)
        client.set_terminated(run_id)  # as `with mlflow.start_run(run_id=...)` does
        return _square(trial)

    study.optimize(objective, n_trials=2, callbacks=[callback])
    for run, trial in zip(_children(uri), study.trials, strict=True):
        assert trial.user_attrs[RUN_ID] == run.info.run_id == run_of(study, trial)
        assert run.data.metrics == {"epoch_loss": 0.25, "value": trial.value}
        assert run.data.params == {"x": "written by the objective"}
        assert run.data.tags["resumed.x"] == str(trial.params["x"])
        assert RUN_ID not in run.data.tags


def test_the_public_ends_tell_a_run_as_the_callback_does(uri: str) -> None:
    client, study = open_client(uri), _study()
    experiment_id = open_experiment(client, uri, "s")
    parent = parent_run(client, experiment_id, study)
    assert parent_run(client, experiment_id, study) == parent
    assert client.get_run(parent).info.status == "RUNNING"
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    frozen = study.trials[0]
    assert link_trial(trial.storage, trial._trial_id, "r")
    assert run_of(study, study.trials[0]) == "r"
    params, tags = describe_trial(frozen, study, parent)
    assert params == {"x": str(trial.params["x"])}
    assert (tags["mlflow.parentRunId"], tags["mlflow.runName"], tags["optuna.state"]) == (parent, "trial 0", "RUNNING")
    study.tell(trial, state=TrialState.FAIL)
    assert not link_trial(trial.storage, trial._trial_id, "later")
    assert study.trials[0].user_attrs[RUN_ID] == "r"


def test_a_search_whose_given_run_is_gone_has_one_of_its_own(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As stages have it; $MLFLOW_RUN_ID of a store that was deleted, say."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    request = SearchRequest("", "", {}, "", uri, "digits", "", "", "", None, 0.0)
    found = _with_parent(request, _study())
    client = open_client(uri)
    assert client.get_experiment(found.experiment_id).name == "digits"
    assert client.get_run(found.parent_run).info.status == "RUNNING"
    given = client.create_run(client.create_experiment("mine")).info
    monkeypatch.setenv("MLFLOW_RUN_ID", given.run_id)
    found = _with_parent(request, _study())
    assert (found.experiment, found.experiment_id, found.parent_run) == ("mine", given.experiment_id, given.run_id)


def test_other_studies_have_runs_of_their_own(uri: str, tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'o.db'}")
    first = _study(storage)
    first.optimize(_square, n_trials=2, callbacks=[MLflowCallback(uri, "s")])
    optuna.copy_study(from_study_name="s", from_storage=storage, to_storage=storage, to_study_name="copy")
    copy = _study(storage, "copy")
    assert copy.user_attrs[RUN_ID] == first.user_attrs[RUN_ID], "the copy has its attributes"
    assert MLflowCallback(uri, "s").catch_up(copy, settled_seconds=0) == 0
    optuna.delete_study(study_name="s", storage=storage)
    again = _study(storage)
    again.optimize(_square, n_trials=1, callbacks=[MLflowCallback(uri, "s")])
    parents = {run.info.run_id: run.info.run_name for run in _parents(uri)}
    below = Counter(run.data.tags["mlflow.parentRunId"] for run in _children(uri))
    assert len(parents) == 3
    assert sorted((parents[run_id], count) for run_id, count in below.items()) == [("copy", 2), ("s", 1), ("s", 2)]


def test_runs_that_were_deleted_are_begun_anew(uri: str) -> None:
    callback, study = MLflowCallback(uri), _study()
    study.optimize(_square, n_trials=1, callbacks=[callback])
    open_client(uri).delete_run(study.user_attrs[RUN_ID])
    MLflowCallback(uri)(study, study.trials[0])
    (parent,) = _parents(uri)
    assert study.user_attrs[RUN_ID] == parent.info.run_id
    assert [run.data.tags["mlflow.parentRunId"] for run in _children(uri)].count(parent.info.run_id) == 1


def test_threads_share_a_callback(uri: str, tmp_path: Path) -> None:
    study = _study(open_storage(str(tmp_path / "j")))
    study.optimize(_square, n_trials=12, n_jobs=4, callbacks=[MLflowCallback(uri)])
    assert len(_parents(uri)) == 1
    assert [int(run.data.tags["optuna.trial_number"]) for run in _children(uri)] == list(range(12))


_meeting: list[Barrier] = []


def _meet(barrier: Barrier) -> None:
    """Keep the place where the processes of a pool meet."""
    _meeting.append(barrier)


def _work(uri: str, address: str) -> str:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=open_storage(address), study_name="s", load_if_exists=True)
    _meeting[0].wait(60)
    study.optimize(_square, n_trials=5, callbacks=[MLflowCallback(uri)])
    return str(study.user_attrs[RUN_ID])


@pytest.mark.parametrize("kind", ["journal", "database"])
def test_four_processes_at_once_begin_one_run_and_tell_each_trial_once(uri: str, tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "j") if kind == "journal" else f"sqlite:///{tmp_path / 'o.db'}"
    context = multiprocessing.get_context("spawn")
    with context.Pool(4, _meet, (context.Barrier(4),)) as pool:
        ids = pool.starmap(_work, [(uri, address)] * 4, chunksize=1)
    (parent,) = _parents(uri)
    assert set(ids) == {parent.info.run_id}
    deleted = open_client(uri).search_runs([parent.info.experiment_id], run_view_type=2)
    assert deleted == [], "runs were begun and deleted"
    study = _study(open_storage(address))
    assert MLflowCallback(uri).catch_up(study, settled_seconds=0) == 0
    children = _children(uri)
    assert [int(run.data.tags["optuna.trial_number"]) for run in children] == list(range(20))
    assert [run.data.metrics["value"] for run in children] == [trial.value for trial in study.trials]
    assert {run.info.status for run in children} == {"FINISHED"}


KILLED = """
import os, signal, sys
import optuna
from mlflow import MlflowClient
from bigstep.optuna_mlflow.callback import MLflowCallback
from bigstep.search.request import SearchRequest
from bigstep.search.storage import open_storage

kind, name, count = {"client": MlflowClient, "study": optuna.Study}[sys.argv[3]], sys.argv[4], int(sys.argv[5])
real = getattr(kind, name)

def killed(*arguments, **more):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **more)

setattr(kind, name, killed)
study = optuna.create_study(storage=open_storage(sys.argv[2]), study_name="s", load_if_exists=True)

def objective(trial):
    for step in range(5):
        trial.report(step / 2, step)
    return trial.suggest_float("x", -1, 1) ** 2

study.optimize(objective, n_trials=3, callbacks=[MLflowCallback(sys.argv[1])])
"""


@pytest.mark.parametrize(
    ("kind", "name", "count"),
    [("study", "set_user_attr", 1), ("client", "create_run", 2), ("client", "log_batch", 3), ("client", "set_terminated", 3)],
)
def test_a_kill_anywhere_leaves_nothing_twice_and_nothing_open(
    uri: str, tmp_path: Path, kind: str, name: str, count: int
) -> None:
    arguments = [sys.executable, "-c", KILLED, uri, str(tmp_path / "j"), kind, name, str(count)]
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == -signal.SIGKILL
    study = _study(open_storage(str(tmp_path / "j")))
    assert study.trials
    callback = MLflowCallback(uri)
    assert callback.catch_up(study) == 1, "the trial that another process has just ended is left to it for a minute"
    assert callback.catch_up(study, settled_seconds=0) == 0
    (parent,), children = _parents(uri), _children(uri)
    assert parent.info.status == "FINISHED"
    assert [run.data.tags["mlflow.parentRunId"] for run in children] == [parent.info.run_id] * len(study.trials)
    for run, trial in zip(children, study.trials, strict=True):
        assert run.info.status == "FINISHED"
        assert run.data.params == {"x": str(trial.params["x"])}
        history = open_client(uri).get_metric_history(run.info.run_id, "intermediate_value")
        assert [(item.step, item.value) for item in history] == [(step, step / 2) for step in range(5)]
        assert len(open_client(uri).get_metric_history(run.info.run_id, "value")) == 1


def test_a_server_that_is_gone_ends_no_study_and_is_told_later(
    uri: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_callback, "LONGEST", 1e-6)  # each trial tries
    port = unused_port()
    callback, study = MLflowCallback(f"http://127.0.0.1:{port}"), _study()

    def objective(trial: optuna.Trial) -> float:
        assert callback.begin(trial) is None
        return _square(trial)

    study.optimize(objective, n_trials=2, callbacks=[callback])
    assert len(study.trials) == 2
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("bigstep")]
    assert line.startswith("MLflow is unreachable (")
    assert capsys.readouterr().out == "", "a library prints nothing"
    assert callback.catch_up(study) == 2
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(mlflow_command(uri, "127.0.0.1", port), env=child_environment(SERVER_GUARDS), **silent)
    try:
        wait_for_port(port)
        study.optimize(_square, n_trials=1, callbacks=[callback])
        wait_until(lambda: callback.catch_up(study) == 0, "the server does not take the trials")  # it listens before it answers
    finally:
        server.terminate()
        server.wait(30)
    assert [run.data.metrics["value"] for run in _children(uri)] == [trial.value for trial in study.trials]
    assert len(_parents(uri)) == 1


def test_a_server_that_is_gone_is_not_asked_at_each_trial() -> None:
    callback, study = MLflowCallback("http://127.0.0.1:9"), _study()  # nobody listens
    callback._pause = 30.0
    study.optimize(_square, n_trials=1, callbacks=[callback])
    assert callback._again_at > time.monotonic() + 50, "the pause is twice as long"
    started = time.monotonic()
    study.optimize(lambda trial: _square(trial) if callback.begin(trial) is None else 1.0, n_trials=20, callbacks=[callback])
    assert time.monotonic() - started < 1.0
    assert callback._missed["s"] == set(range(21))


def test_more_children_than_a_page_are_found(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study, callback = _study(), MLflowCallback(uri)
    study.optimize(_square, n_trials=5, callbacks=[callback])
    real = MlflowClient.search_runs
    monkeypatch.setattr(MlflowClient, "search_runs", lambda *a, **more: real(*a, **{**more, "max_results": 2}))
    assert callback._known(study) == set(range(5))


def test_no_password_of_a_database_reaches_mlflow() -> None:
    for address in ("postgresql+psycopg://me:secret@host:5432/studies?password=secret", "postgresql://host:5432/studies"):
        assert database_name(address) == "postgresql://host:5432/studies"
    assert database_name("sqlite://") is None


def test_the_pages_code_runs_as_it_stands(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    codes = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(codes) == 3
    names: dict[str, Any] = {}
    for code in codes:
        exec(code, names)  # the page is the project's own
    runs = _children(uri, "squares")
    states = Counter(run.data.tags["optuna.state"] for run in runs)
    assert sum(states.values()) == len(names["study"].trials) == 22
    assert states["PRUNED"] >= 1
    assert all(run.data.metrics for run in runs)


def test_threads_of_one_process_begin_one_run(uri: str, tmp_path: Path) -> None:
    study = _study(open_storage(str(tmp_path / "j")))
    client = open_client(uri)
    experiment_id = open_experiment(client, uri, "s")
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: parent_run(client, experiment_id, study), range(8)))
    assert len(ids) == 1
    assert len(_parents(uri)) == 1
