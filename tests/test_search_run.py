"""`bigstep search` as people run it: the same bytes twice, killed and begun again, adopted, told to MLflow."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from bigstep.config.yaml_files import read_yaml
from bigstep.data.store import Store
from bigstep.ensembles.members import check_members, read_members
from bigstep.ensembles.registered import confirmed_models
from bigstep.project.paths import ProjectPaths
from bigstep.search.storage import open_storage
from bigstep.search.trial_queue import counts_toward_budget
from browser import look
from conftest import read_rows
from faults.project import Project
from postgres import postgres
from searching import QUICK, kill_and_finish, open_stored_study, search_runs, searching_project, wait_until_it_trains
from serving import unused_port, wait_for_port

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")]
RESULTS = ("trials.csv", "again.csv", "best_params.yaml", "summary.json")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, prepared_root: Path, plans: Path) -> Project:
    """A project that searched once: four trials, one worker."""
    project = searching_project(tmp_path_factory.mktemp("search") / "project", prepared_root, plans, *QUICK)
    project.search_output = project.bigstep("search", "--trials", "4", "--workers", "1")  # type: ignore[attr-defined]
    return project


def _results(project: Project) -> dict[str, bytes]:
    return {name: (project.root / "results" / "search" / name).read_bytes() for name in RESULTS}


def test_a_search_writes_its_tables_and_says_what_it_found(quick: Project) -> None:
    rows = read_rows(quick.root / "results" / "search" / "trials.csv")
    assert [row["number"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[0]["effective_batch_size"] == "64"
    assert float(rows[0]["learning_rate"]) == 0.004
    for row in rows:
        size, steps = int(row["micro_batch_size"]), int(row["accumulation_steps"])
        assert -(-int(row["effective_batch_size"]) // size) == steps
    assert {"COMPLETE"} == {row["state"] for row in rows}
    again = read_rows(quick.root / "results" / "search" / "again.csv")
    assert sorted(row["kind"] for row in again) == ["audit", "replicate", "replicate"]
    slicings = read_rows(quick.root / "results" / "search" / "slicings.csv")
    assert {row["number"] for row in slicings} == {"0", "1", "2", "3"}
    assert sum(row["trained"] == "True" for row in slicings) == 4
    output = quick.search_output  # type: ignore[attr-defined]
    for text in ("the micro-batch size is planned", "over 1 seed", "audit: trial", "winner: trial"):
        assert text in output, output
    assert (quick.root / "results" / "search" / "landscape.png").stat().st_size > 5000


def test_the_models_that_were_retrained_are_kept_as_members_of_an_ensemble(quick: Project) -> None:
    folders = confirmed_models(ProjectPaths(quick.root), "search")
    members = read_members(folders, code="")
    check_members(members, Store(quick.root / "data" / "prepared"))
    again = {row["number"]: row for row in read_rows(quick.root / "results" / "search" / "again.csv")}
    assert len(members) == sum(row["kind"] == "replicate" for row in again.values()) == 2
    losses = sorted(float(row["val_loss"]) for row in again.values() if row["kind"] == "replicate")
    assert sorted(member.card.val_loss for member in members) == pytest.approx(losses, rel=1e-6)


def test_mlflow_has_a_run_for_the_search_and_one_below_it_for_each_training(quick: Project) -> None:
    parents, children = search_runs(quick)
    (parent,) = parents
    assert parent.info.status == "FINISHED"
    assert len(children) == 4 + 3
    for run in children:
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert {"train.learning_rate", "hardware.micro_batch_size", "hardware.accumulation_steps"} <= set(run.data.params)
        assert {"val_loss", "best_val_loss", "training_seconds", "training_peak_bytes"} <= set(run.data.metrics)
    trials = open_stored_study(quick, "search").get_trials()
    assert {trial.user_attrs["mlflow_run_id"] for trial in trials} <= {run.info.run_id for run in children}
    for trial in trials:  # epochs are counted from 1
        losses = [value for key, _, value in quick.history(trial.user_attrs["mlflow_run_id"]) if key == "val_loss"]
        assert trial.user_attrs["best_epoch"] == losses.index(min(losses)) + 1


@pytest.mark.long
def test_a_second_search_on_an_empty_store_gives_the_same_bytes(
    quick: Project, tmp_path: Path, prepared_root: Path, plans: Path
) -> None:
    second = searching_project(tmp_path / "second", prepared_root, plans, *QUICK)
    second.bigstep("search", "--trials", "4", "--workers", "1")
    assert _results(second) == _results(quick)


def test_the_same_search_again_by_mlflow_run_trains_nothing_and_a_larger_budget_goes_on(quick: Project) -> None:
    (parent,), before = search_runs(quick)[0], {run.info.run_id for run in quick.runs()}
    results, begun = _results(quick), time.monotonic()
    quick.run("mlflow", "run", ".", "-e", "search", "--env-manager", "local", "-P", "trials=4")
    assert time.monotonic() - begun < 60
    assert _results(quick) == results
    (pointer,) = (run for run in quick.runs() if run.info.run_id not in before)
    assert pointer.info.experiment_id == "0"
    assert pointer.info.status == "FINISHED"
    assert pointer.data.tags["bigstep.run_id"] == parent.info.run_id
    command = ["bigstep", "search", "--trials", "5", "--workers", "1", "--apply", "--json"]
    environment = quick.environment(PYTHONPATH=str(quick.root / "src"))
    done = subprocess.run(command, cwd=quick.root, env=environment, text=True, capture_output=True, check=True, timeout=300)
    found = json.loads(done.stdout)
    rows = read_rows(quick.root / "results" / "search" / "trials.csv")
    assert len(rows) == 5
    best = read_yaml(quick.root / "results" / "search" / "best_params.yaml")
    assert found["params"] == best
    assert {"winner", "verdict", "replicates"} <= found.keys()
    params = read_yaml(quick.root / "params.yaml")
    assert params["train"]["learning_rate"] == best["train"]["learning_rate"]
    assert params["hardware"]["micro_batch_size"] == best["hardware"]["micro_batch_size"]
    assert "# peak" in (quick.root / "params.yaml").read_text(encoding="utf-8")


def test_another_model_does_not_mix_with_the_study(quick: Project) -> None:
    output = quick.bigstep("search", "--trials", "9", "--set", "model.width=16", code=2)
    assert "search.study: expected the parameters that the study was started with, got changed model.width (was 8)" in output


@pytest.mark.long
@pytest.mark.usefixtures("quick")  # measures the plan
def test_killed_at_random_moments_a_search_ends_with_the_trials_asked_for(
    tmp_path: Path, prepared_root: Path, plans: Path
) -> None:
    """`make faults` kills twenty times."""
    kill_and_finish(searching_project(tmp_path / "killed", prepared_root, plans, *QUICK), 0, kills=1)


def test_a_search_on_postgresql_survives_a_kill_and_leaves_no_password(
    tmp_path: Path, prepared_root: Path, plans: Path
) -> None:
    """The default sampler, an empty database, two workers; killed while a trial trains, and run again."""
    project = searching_project(tmp_path / "postgresql", prepared_root, plans, *QUICK)
    with postgres() as address:
        command = ("search", "--trials", "4", "--workers", "2", "--storage", address)
        process = project.start(sys.executable, "-m", "bigstep.cli", *command, PYTHONPATH=str(project.root / "src"))
        wait_until_it_trains(address, process)
        for victim in project.processes(wait=0):
            victim.kill()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()
        output = project.bigstep(*command)
        storage = open_storage(address)
        trials = optuna.load_study(study_name="search", storage=storage).get_trials()
        storage.remove_session()
        storage.engine.dispose()  # type: ignore[attr-defined] # of an RDBStorage
    assert len(counts_toward_budget(trials)) == 4
    assert all(trial.state.is_finished() for trial in trials)
    assert "winner: trial" in output
    left = [path for path in project.root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in left if b"study:secret" in path.read_bytes()] == []


def test_a_search_whose_worker_failed_names_no_winner(tmp_path: Path, prepared_root: Path, plans: Path) -> None:
    project = searching_project(tmp_path / "failed", prepared_root, plans, *QUICK)
    module = project.root / "src" / "bigstep" / "search" / "samplers.py"
    text = module.read_text(encoding="utf-8")
    broken = 'AUTO = {}\n\n\ndef choose_sampler(*args: object, **kwargs: object) -> None:\n    raise ValueError("broken")\n'
    module.write_text(broken, encoding="utf-8")
    output = project.bigstep("search", "--trials", "4", "--workers", "1", code=1)
    assert "the search failed, so there is no winner" in output
    assert "winner: trial" not in output
    trials = open_stored_study(project, "search").get_trials()
    assert not [trial for trial in trials if trial.state.name == "RUNNING"]
    assert not (project.root / "results" / "search" / "best_params.yaml").exists()
    module.write_text(text, encoding="utf-8")


def test_mlflows_page_shows_the_search_and_its_trials(quick: Project, tmp_path: Path) -> None:
    port = unused_port()
    command = [sys.executable, "-m", "bigstep.cli", "mlflow", "--port", str(port)]
    server = quick.start(*command, PYTHONPATH=str(quick.root / "src"))
    try:
        line = quick.until(server, lambda line: "with their scores" in line)[-1]
        wait_for_port(port)
        experiment = quick.runs()[0].info.experiment_id
        address = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?viewStateShareKey=scores"
        assert line == f"runs of bigstep with their scores: {address}\n"
        shown = look(address, tmp_path / "runs.png", seconds=25)
        assert ">search<" in shown
        assert ">Scores first<" in shown
        assert 'col-id="metrics.`best_val_loss`"' in shown
        assert "matching runs" in shown  # those of the trials lie folded below it
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(30)
        if server.stdout is not None:
            server.stdout.close()
    assert not quick.processes()
