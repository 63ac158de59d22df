"""What nothing needs is removed; what a running or killed run, an unsent history or a study needs stays."""

import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from bigstep.atomic_files import write_json
from bigstep.commands.clean import clean
from bigstep.config.params import parse_params, read_params
from bigstep.project.attempts import PipelineAttempt, attempt_key, read_attempt
from bigstep.project.parameters import learning_values
from bigstep.project.paths import ProjectPaths
from bigstep.runs.cleaning import find_unneeded, trim
from bigstep.runtime.file_locks import exclusive_lock
from bigstep.tracking.spool import Sent, Spool
from bigstep.tracking.spool_tracker import SpoolTracker
from dvc_dependencies import ROOT

DAY = 86400.0
DONE = ("train", "evaluate")


@pytest.fixture
def project(tmp_path: Path) -> ProjectPaths:
    return ProjectPaths(tmp_path)


def _attempt(project: ProjectPaths, key: str, number: int = 1, finished: tuple[str, ...] = ()) -> None:
    write_json(asdict(PipelineAttempt(number, None, finished, None)), project.attempts / f"{key}.json")


def _checkpoint(folder: Path) -> Path:
    (folder / "step-000000001").mkdir(parents=True)
    (folder / "step-000000001" / "tensors.safetensors").write_bytes(b"0" * 1000)
    return folder


def _spool(folder: Path, *, status: str | None = "FINISHED", delivered: bool = True) -> Path:
    spool = Spool(folder)
    spool.begin("sqlite:///mlflow.db", "tests")
    tracker = SpoolTracker(spool)
    tracker.set_tags({"a": "b"})
    if status is not None:
        tracker.finish(status)
    if delivered:
        spool.sent = Sent("run", spool.path.stat().st_size)
    spool.close()
    return folder


def _age(folder: Path, seconds: float) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (time.time() - seconds,) * 2)


def _found(project: ProjectPaths, days: float = 30.0) -> set[str]:
    return {item.path.relative_to(project.state).as_posix() for item in find_unneeded(project, days)}


def test_checkpoints_stay_while_a_training_can_be_resumed(project: ProjectPaths) -> None:
    for key, number, finished in (("killed", 1, ()), ("trained", 1, ("train",)), ("newer", 2, ())):
        _attempt(project, key, number, finished)
        _checkpoint(project.checkpoints / f"{key}.1")
    (project.checkpoints / "trained.1.starts.json").write_text("{}", encoding="utf-8")
    _checkpoint(project.checkpoints / "unknown.1")
    assert _found(project) == {"checkpoints/trained.1", "checkpoints/trained.1.starts.json", "checkpoints/newer.1"}
    with exclusive_lock(project.attempts / "newer.lock"):  # a stage is running
        assert "checkpoints/newer.1" not in _found(project)


def test_histories_stay_until_they_are_sent_and_their_run_has_ended(project: ProjectPaths) -> None:
    for key, finished in (("done", DONE), ("trained", ("train",)), ("unsent", DONE), ("open", DONE)):
        _attempt(project, key, 1, finished)
        _spool(project.spools / f"{key}.1", status=None if key == "open" else "FINISHED", delivered=key != "unsent")
    _spool(project.spools / "of-an-attempt-that-is-lost.1")
    assert _found(project) == {"spools/done.1"}
    with exclusive_lock(project.spools / "done.1.lock"):
        assert _found(project) == set()


def test_trials_stay_until_they_have_ended(project: ProjectPaths) -> None:
    study = project.search / "study"
    for name, status in (("trial-0", "FINISHED"), ("trial-1", "KILLED"), ("trial-2", "FINISHED"), ("search", "FINISHED")):
        _spool(study / "spools" / name, status=status)
        (study / "trials" / name).mkdir(parents=True)
    _checkpoint(study / "trials" / "trial-2" / "checkpoints")  # its result is not in the study yet
    assert _found(project) == set(), "a worker may still be reporting"
    _age(project.search, 7200)
    assert _found(project) == {"search/study/spools/trial-0", "search/study/trials/trial-0"}


def test_private_copies_stay_while_they_are_used_or_can_be_resumed(project: ProjectPaths) -> None:
    content = read_params(ROOT / "params.yaml")
    keys = {}
    for number, name in enumerate(("done", "killed", "used", "running", "damaged")):
        folder = project.workspaces / name
        folder.mkdir(parents=True)
        text = (ROOT / "params.yaml").read_text(encoding="utf-8")
        seed = content["train"]["seed"]
        (folder / "params.yaml").write_text(text.replace(f"seed: {seed} ", f"seed: {100 + number} "), encoding="utf-8")
        keys[name] = attempt_key(learning_values(parse_params(read_params(folder / "params.yaml"), "")), "")
        _age(folder, DAY if name == "used" else 40 * DAY)
    assert len(set(keys.values())) == 5
    _attempt(project, keys["killed"], 1, ("train",))
    (project.workspaces / "damaged" / "params.yaml").write_text("[", encoding="utf-8")
    _age(project.workspaces / "damaged", 40 * DAY)
    with exclusive_lock(project.workspaces / "running.lock"):
        assert _found(project) == {"workspaces/done"}
        assert _found(project, days=0.5) == {"workspaces/done", "workspaces/used"}
        trim(project)  # keeps the newest 50
        assert (project.workspaces / "done").exists()


def test_measurements_of_this_machine_and_records_that_name_something_stay(project: ProjectPaths) -> None:
    from importlib.metadata import version

    for name, torch in (("now", version("torch")), ("former", "1.0")):
        write_json({"machine": {"torch": torch, "cores": os.cpu_count()}}, project.plans / name / "measured.json")
    write_json({}, project.plans / "automatic" / "auto-64-any-auto.json")
    for key, finished in (("done", DONE), ("named", DONE), ("open", ("train",))):
        _attempt(project, key, 1, finished)
    _spool(project.spools / "named.1", delivered=False)
    assert _found(project) == set()
    _age(project.state, 40 * DAY)
    assert _found(project) == {"plans/former", "attempts/done.json", "attempts/done.lock"}


def test_compiled_code_stays_while_some_of_it_is_new(project: ProjectPaths) -> None:
    assert _found(project) == set()
    for name in ("ab", "cd"):
        (project.compiled / name).mkdir(parents=True)
    _age(project.compiled, 31 * DAY)
    assert _found(project) == {"compiled"}
    (project.compiled / "ef").mkdir()
    assert _found(project) == set()


def test_the_command_prints_what_it_removes_and_a_dry_run_removes_nothing(
    project: ProjectPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    _attempt(project, "done", 1, DONE)
    _checkpoint(project.checkpoints / "done.1")
    _spool(project.spools / "done.1")
    assert clean(project.root, days=30, dry_run=True) == 0
    output = capsys.readouterr().out
    assert "checkpoints/done.1  1000 B" in output or "checkpoints/done.1  0.98 KiB" in output or "1,000" in output
    assert "would remove 2" in output
    assert (project.checkpoints / "done.1").exists()
    assert (project.spools / "done.1").exists()
    assert clean(project.root, days=30, dry_run=False) == 0
    assert "removed 2" in capsys.readouterr().out
    assert not (project.checkpoints / "done.1").exists()
    assert not list(project.spools.iterdir())
    assert read_attempt(project.attempts, "done") is not None
    clean(project.root, days=30, dry_run=False)
    assert "nothing to remove" in capsys.readouterr().out


def test_a_run_keeps_the_newest_histories(project: ProjectPaths) -> None:
    for number in range(22):
        _attempt(project, f"key{number}", 1, DONE)
        _spool(project.spools / f"key{number}.1")
        _age(project.spools / f"key{number}.1", 1000 - number)
        if number == 18:  # fewer than are kept
            trim(project)
            assert len([*project.spools.glob("*.1")]) == 19
    trim(project)
    assert {path.name for path in project.spools.glob("*.1")} == {f"key{number}.1" for number in range(2, 22)}
    shutil.rmtree(project.state)
    trim(project)
    assert _found(project) == set()
