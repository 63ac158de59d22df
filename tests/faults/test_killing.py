"""Rows 1 to 6 and 31: processes that are killed or told to stop."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from faults.project import EndState, Project, kill_group

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # pipes of processes that are killed
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]
LONGEST = 36.0  # seconds, about as long as an undisturbed run takes


@pytest.mark.fault("1, 31", "SIGKILL at a random moment of `dvc repro`, to the group or to `dvc` alone", rounds=100)
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(
    round_number: int, project: Project, judged: EndState, record_property: Callable[[str, object], None]
) -> None:
    draw = random.Random(round_number)
    alone = round_number % 2 == 1
    if draw.random() < 0.25:  # else the data is prepared already, and train and evaluate are hit
        for name in ("data/prepared", ".dvc/cache", "dvc.lock"):
            path = project.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    process = project.start()
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    time.sleep(draw.uniform(0.5, LONGEST))
    ended = process.poll() is not None
    if alone and not ended:
        os.kill(process.pid, signal.SIGKILL)
    elif not ended:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    stage = next((line.split("'")[1] for line in reversed(lines) if "Running stage" in line), "before")
    output = project.finish()
    reader.join(30)
    note = "ended already" if ended else stage
    record_property("note", f"{note}, doctor first" if "is damaged" in output else note)
    assert project.end_state() == judged, output[-3000:]


@pytest.mark.fault(4, "repeated SIGKILL in the middle of a step", rounds=10, rare=True)
def test_killed_within_a_step_the_step_is_replayed(round_number: int, project: Project, undisturbed: EndState) -> None:
    draw = random.Random(1000 + round_number)
    for _ in range(2):
        process = project.start("dvc", "repro", "train")
        project.until(process, lambda line: line.startswith(("small_cnn", "resuming")))
        time.sleep(draw.uniform(0.5, 3.0))
        trainers = [item for item in psutil.process_iter() if project._is_mine(item) and "train.py" in str(item.cmdline())]
        for trainer in trainers:
            trainer.kill()
        process.communicate(timeout=60)
    project.finish("train")
    assert project.end_state() == undisturbed


@pytest.mark.fault(5, "SIGTERM while training", rounds=10)
def test_told_to_stop_it_commits_and_says_so(round_number: int, project: Project, undisturbed: EndState) -> None:
    project.set("hardware.checkpoint_interval=none")
    draw = random.Random(2000 + round_number)
    process = project.start("bigstep", "train", PYTHONPATH=str(project.root / "src"))
    project.until(process, lambda line: line.startswith("epoch 1/"))
    time.sleep(draw.uniform(0.0, 0.4))
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "stopped by SIGTERM" in output
    assert "Traceback" not in output
    assert time.monotonic() - started < 20
    assert [run.info.status for run in project.runs()] == ["KILLED"]
    step = int(project.checkpoints()[-1].name.removeprefix("step-"))
    again = project.finish("train")
    assert f"resuming from the checkpoint of step {step}" in again
    assert [run.info.status for run in project.runs()] == ["FINISHED"]
    assert project.end_state().metrics == undisturbed.metrics


@pytest.mark.fault(6, "Ctrl-C, then a second one", rounds=5, rare=True)
def test_a_second_signal_ends_at_once_and_loses_nothing_committed(round_number: int, project: Project) -> None:
    project.set(f"train.seed={round_number}", "train.epochs=200")
    process = project.start("bigstep", "train", PYTHONPATH=str(project.root / "src"))
    project.until(process, lambda line: line.startswith("epoch 3/"))
    before = project.checkpoints()[0]
    trainer = next(item for item in psutil.process_iter() if project._is_mine(item) and "train.py" in str(item.cmdline()[1:2]))
    trainer.suspend()  # as if the step took long
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.7)
    trainer.resume()
    os.killpg(process.pid, signal.SIGINT)
    started = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - started < 12
    assert process.returncode in (130, 1), output
    assert project.checkpoints()[-1].name >= before.name
    project.set("train.epochs=5")


@pytest.mark.fault("41", "SIGTERM to the whole group, `dvc` dies first", rounds=5, rare=True)
def test_told_as_a_group_the_stage_still_commits(round_number: int, project: Project, undisturbed: EndState) -> None:
    process = project.start("dvc", "repro", "train")
    project.until(process, lambda line: line.startswith("epoch 1/"))
    time.sleep(random.Random(round_number).uniform(0, 0.3))
    kill_group(process, signal.SIGTERM)
    output = project.finish("train")
    assert "resuming from the checkpoint" in output
    assert project.end_state() == undisturbed


@pytest.mark.fault(48, "params.yaml edited while a stage runs, then restored", rounds=20, rare=True)
def test_an_edit_while_it_runs_leaves_no_result_and_costs_nothing(
    round_number: int, project: Project, judged: EndState
) -> None:
    process = project.start("bigstep", "repro", PYTHONPATH=str(project.root / "src"))
    project.until(process, lambda line: line.startswith("small_cnn"))  # train has read its parameters
    time.sleep(random.Random(round_number).uniform(0, LONGEST / 2))
    params = project.root / "params.yaml"
    original = params.read_text(encoding="utf-8")
    project.set("train.learning_rate=0.05", "evaluate.calibration_bins=9")
    output, _ = process.communicate(timeout=120)
    lock = (project.root / "dvc.lock").read_text(encoding="utf-8")
    assert "Traceback" not in output
    assert "learning_rate: 0.05" not in lock, output
    refusals = ("expected no change while the stage", "expected what the stage ran with", "expected what stage train ran with")
    assert process.returncode == (2 if any(text in output for text in refusals) else 0), output
    params.write_text(original, encoding="utf-8")
    project.finish()
    assert project.end_state() == judged


@pytest.mark.fault(49, "the same command restarted at once after a kill, ten times", rounds=5, rare=True)
def test_started_again_at_once_after_a_kill_it_never_refuses(round_number: int, project: Project, judged: EndState) -> None:
    draw = random.Random(3000 + round_number)
    output = ""
    for _ in range(10):
        process = project.start("bigstep", "repro", PYTHONPATH=str(project.root / "src"))
        with contextlib.suppress(subprocess.TimeoutExpired):
            output, _ = process.communicate(timeout=draw.uniform(0.5, LONGEST / 3))
        assert process.poll() in (None, 0), output
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    project.bigstep("repro")
    assert project.end_state() == judged


def test_the_lines_of_the_state_folder_are_swept(project: Project) -> None:
    half = project.root / "results" / "train" / ".model.json.99999999.tmp"
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_text("half", encoding="utf-8")
    assert f"{half}" in project.bigstep("doctor", code=4)
    assert "removed" in project.bigstep("doctor", "--fix", code=None)
    assert not Path(half).exists()
