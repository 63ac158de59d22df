"""`bigstep status`, `hardware.max_time`, and results as JSON."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from bigstep.atomic_files import write_json
from bigstep.commands.clean import clean
from bigstep.commands.repro import finish_pipeline
from bigstep.commands.status import status
from bigstep.config.params import parse_params, read_params
from bigstep.diagnostics.activity import QUEUE
from bigstep.diagnostics.doctor import doctor
from bigstep.diagnostics.verify import verify
from bigstep.project.attempts import writer_lock
from bigstep.project.parameters import check_params
from bigstep.project.paths import StagePaths
from bigstep.search import storage
from bigstep.search.storage import open_storage
from conftest import copy_prepared
from faults.project import Project
from serving import unused_port


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, prepared_root: Path) -> Project:
    """A project whose training was stopped by its time limit after the first step."""
    project = copy_prepared(prepared_root, tmp_path_factory.mktemp("status") / "project")
    project.set("hardware.max_time=0s")
    output = project.run("python", "pipelines/train.py", code=124)
    assert "bigstep: stopped by hardware.max_time; run the same command to resume" in output
    return project


def _answer(command: Callable[..., int], *arguments: object, code: int = 0, **options: object) -> Any:
    results: list[Any] = []
    assert command(*arguments, report=results.append, **options) == code
    (found,) = results
    return json.loads(json.dumps(found))


@pytest.mark.slow
def test_status_says_what_is_not_over(stopped: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(stopped.root) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "small_cnn" in line]
    pattern = r"interrupted: small_cnn, B 64, lr 0.004, seed 0, stage train, epoch 0/2 done, step 1, .*resumes from step 1, .*"
    assert re.fullmatch(pattern, line), line
    (run,) = _answer(status, stopped.root)["runs"]
    assert (run["state"], run["stage"], run["checkpoint"]) == ("interrupted", "train", 1)
    key = run["name"].rpartition(".")[0]
    with writer_lock(stopped.root / ".bigstep" / "attempts" / f"{key}.lock"):
        (run,) = _answer(status, stopped.root)["runs"]
        assert run["state"] == "running"


@pytest.mark.slow
def test_status_counts_the_trials_of_a_study_and_the_queue_of_dvc(stopped: Project, capsys: pytest.CaptureFixture[str]) -> None:
    address = str(stopped.root / ".bigstep" / "search" / "digits.journal")
    study = optuna.create_study(storage=open_storage(address), study_name="digits", direction="minimize")
    study.optimize(lambda trial: trial.suggest_float("x", 1, 2), n_trials=2)
    study.enqueue_trial({"x": 1.5})
    stopped.set("search.study=digits")
    for number in range(2):  # as DVC does
        commit = stopped.run(
            "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit-tree", "HEAD^{tree}", "-m", f"{number}"
        )
        stopped.run("git", "update-ref", "--create-reflog", "-m", f"exp-{number}", QUEUE, commit.strip())
    found = _answer(status, stopped.root)
    (read,) = found["studies"]
    assert (read["trials"], read["best"]) == ({"complete": 2, "waiting": 1}, study.best_value)
    assert found["queued_experiments"] == 2
    capsys.readouterr()
    assert status(stopped.root) == 0
    text = capsys.readouterr().out
    assert f"study digits: 2 complete, 1 waiting; best val_loss {study.best_value:.4f}" in text
    assert "2 experiments wait in DVC's queue; `dvc queue start` runs them" in text


@pytest.mark.slow
def test_status_makes_no_database_and_needs_no_git(
    prepared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = copy_prepared(prepared_root, tmp_path / "project")
    database = project.root / "study.db"
    project.set(f"search.storage=sqlite:///{database}")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert status(project.root) == 0
    assert not database.exists()
    monkeypatch.setattr(storage, "START_SECONDS", 0.0)
    project.set(f"search.storage=postgresql://study:secret@127.0.0.1:{unused_port()}/postgres")
    assert status(project.root) == 0
    printed = " ".join(capsys.readouterr().out.split())
    nothing = "nothing runs, and nothing waits"
    assert re.fullmatch(rf"{nothing} study search: search.storage: expected .* {nothing}", printed), printed
    assert "secret" not in printed


@pytest.mark.slow
def test_results_as_json_are_alone_on_stdout(stopped: Project) -> None:
    """With a stage of DVC below, whose lines go to stderr."""
    stopped.set("hardware.max_time=none", "train.epochs=1")
    command = ["bigstep", "check", "--samples", "8", "--json"]
    environment = stopped.environment(PYTHONPATH=str(stopped.root / "src"))
    finished = subprocess.run(
        command, cwd=stopped.root, env=environment, text=True, capture_output=True, check=False, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["exact"]
    assert found["num_samples"] == 8
    assert {len(layer["errors"]) for layer in found["layers"]} == {len(found["micro_batch_sizes"])}
    assert "exact in every layer" in finished.stderr


@pytest.mark.slow
def test_doctor_clean_and_verify_report_what_they_print(stopped: Project) -> None:
    params = check_params(read_params(stopped.root / "params.yaml"))
    assert _answer(verify, stopped.root, params) == {"damaged": [], "unread": None}
    assert _answer(clean, stopped.root, days=30.0, dry_run=True) == []
    (stopped.root / ".bigstep" / "attempts" / "half.json").write_text("{", encoding="utf-8")
    found = _answer(doctor, stopped.root, fix=True)
    assert any("half.json" in item["problem"] and item["repair"] for item in found)


def test_the_completion_of_a_shell_knows_the_commands() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "bigstep.cli", "completion", "bash"], text=True, capture_output=True, check=True
    )
    assert all(name in finished.stdout for name in ("status", "--dry-run", "--ignore-code-change"))
    subprocess.run(["bash", "-n"], input=finished.stdout, text=True, check=True)


def test_a_pipeline_ends_with_its_metrics_and_where_the_report_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "evaluate"):
        (tmp_path / "results" / name).mkdir(parents=True)
        write_json({f"{name}_loss": 0.5}, tmp_path / "results" / name / "metrics.json")
    assert finish_pipeline(tmp_path, StagePaths(tmp_path), parse_params({}), "evaluate") == 0
    shown = capsys.readouterr().out
    assert "small_cnn on digits, effective batch 64, micro-batch size auto" in shown
    assert "evaluate_loss" in shown
    assert "report: results/evaluate/report.html   runs: bigstep mlflow" in shown
