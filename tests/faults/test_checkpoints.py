"""Rows 2, 3, 7 to 10, 12, 36 and 38: what can become of a checkpoint."""

import json
import os
import random
import time
from pathlib import Path

import pytest

from faults.project import EndState, Project

pytestmark = pytest.mark.slow
WRITING = {
    "before anything": ("os.mkdir", r"\.step-\d+\.\d+\.tmp$"),
    "between the two files": ("open", r"\.step-\d+\.\d+\.tmp/values\.json$"),
    "before the commit is written": ("open", r"\.step-.*/\.commit\.json.*tmp"),
    "before the commit is named": ("os.rename", r"\.commit\.json\..*tmp"),
}
COMMITTING = {
    "between flush and rename": ("os.rename", r"\.step-\d+\.\d+\.tmp$"),
    "between rename and purge": ("os.remove", r"step-\d+/commit\.json$"),
}


def _interrupted(project: Project) -> None:
    """Train up to somewhere in the third epoch, and be killed there."""
    project.strike("os.rename", r"\.step-\d+\.\d+\.tmp$", 3)
    assert len(project.checkpoints()) == 2


@pytest.mark.long
@pytest.mark.fault(2, "SIGKILL while a checkpoint is written", rounds=20)
def test_killed_while_writing_the_one_before_loads(round_number: int, project: Project, undisturbed: EndState) -> None:
    draw = random.Random(round_number)
    event, pattern = list(WRITING.values())[round_number % len(WRITING)]
    number = draw.randint(1, 4)
    project.strike(event, pattern, number)
    before = [path.name for path in project.checkpoints()]
    assert len(before) <= 2
    output = project.finish("train")
    assert f"resuming from the checkpoint of step {int(before[-1][5:])}" in output if before else "resuming from" not in output
    assert not list(project.root.rglob(".step-*"))
    assert project.end_state() == undisturbed


@pytest.mark.fault(3, "SIGKILL between flush and rename, and between rename and purge", rounds=10, rare=True)
def test_killed_while_committing_the_old_or_the_new_loads(round_number: int, project: Project, undisturbed: EndState) -> None:
    event, pattern = list(COMMITTING.values())[round_number % 2]
    project.strike(event, pattern, 1 + round_number // 2 % 2)
    output = project.finish("train")
    if project.checkpoints():
        assert "resuming from the checkpoint" in output
    assert project.end_state() == undisturbed


@pytest.mark.long
@pytest.mark.fault("7, 8", "one byte of the newest checkpoint flipped, or the file truncated", rounds=10)
def test_a_damaged_checkpoint_is_passed_over(round_number: int, project: Project, undisturbed: EndState) -> None:
    _interrupted(project)
    draw = random.Random(round_number)
    older, newest = project.checkpoints()
    path = newest / draw.choice(["tensors.safetensors", "values.json"])
    content = bytearray(path.read_bytes())
    if round_number % 2:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: draw.choice([0, 1, len(content) // 2, len(content) - 1])])
    assert "checkpoint:" in project.bigstep("verify", code=4)
    output = project.finish("train")
    assert "skipped a damaged checkpoint" in output
    assert f"resuming from the checkpoint of step {int(older.name[5:])}" in output
    assert project.end_state() == undisturbed


@pytest.mark.fault(9, "every checkpoint damaged", rounds=3, rare=True)
def test_with_every_checkpoint_damaged_nothing_begins_silently(round_number: int, project: Project) -> None:
    del round_number
    _interrupted(project)
    for path in project.checkpoints():
        (path / "tensors.safetensors").write_bytes(b"")
    output = project.bigstep("train", code=4)
    assert "checkpoints: expected an intact one" in output
    assert "Traceback" not in output
    assert "epoch 1/" not in output


@pytest.mark.fault(10, "disk full while a checkpoint is written", rounds=3, rare=True)
def test_a_full_disk_stops_no_training(round_number: int, project: Project) -> None:
    project.set("model.width=64", f"train.seed={round_number}")
    output = project.run("bash", "-c", "ulimit -f 3000; dvc repro train")
    assert "no checkpoint at step" in output
    assert "File too large" in output
    assert not project.checkpoints()
    limited = (project.root / "results/train/model.safetensors").read_bytes()
    project.run("dvc", "repro", "-q", "-f", "-s", "train")
    assert (project.root / "results/train/model.safetensors").read_bytes() == limited


@pytest.mark.fault(12, "results cannot be written", rounds=3, rare=True)
def test_results_that_cannot_be_written_stop_it_before_training(round_number: int, project: Project) -> None:
    del round_number
    (project.root / "results").write_text("a file in the way", encoding="utf-8")
    started = time.monotonic()
    output = project.run("python", "pipelines/train.py", code=2)
    assert "cannot write to " in output
    assert "epoch" not in output
    assert time.monotonic() - started < 20  # most of it importing torch


@pytest.mark.fault(36, "other versions of torch, NumPy or Python at the resume", rounds=3, rare=True)
def test_other_versions_are_told_and_tagged(round_number: int, project: Project) -> None:
    _interrupted(project)
    name = ["torch", "numpy", "python"][round_number]
    for path in project.checkpoints():
        commit = json.loads((path / "commit.json").read_text(encoding="utf-8"))
        commit["versions"][name] = "1.2.3"
        (path / "commit.json").write_text(json.dumps(commit), encoding="utf-8")
    output = project.finish("train")
    assert f"this training was started with {name} 1.2.3" in output
    assert project.runs()[-1].data.tags["bigstep.resumed_with_other_versions"] == f"{name} 1.2.3"


@pytest.mark.fault(38, "resume with another micro-batch size, worker count and number of threads", rounds=3, rare=True)
def test_it_goes_on_with_another_slicing(round_number: int, project: Project, undisturbed: EndState) -> None:
    _interrupted(project)
    project.set(f"hardware.micro_batch_size={[64, 16, 7][round_number]}", "hardware.num_workers=0", "hardware.threads=1")
    output = project.finish("train")
    assert "resuming from the checkpoint" in output
    (run,) = project.runs()
    assert run.info.status == "FINISHED"
    expected = {(key, step): value for key, step, value in undisturbed.metrics if key == "step_loss"}
    found = {(key, step): value for key, step, value in project.history(run.info.run_id) if key == "step_loss"}
    assert found.keys() == expected.keys()
    assert all(found[place] == pytest.approx(expected[place], rel=0.05) for place in expected)


@pytest.mark.fault(39, "the same with BatchNorm, whose micro-batch decides what is learned", rounds=3, rare=True)
def test_batch_norm_never_goes_on_with_another_micro_batch(round_number: int, project: Project) -> None:
    project.set("model.norm=batch", "model.ghost_batch_size=16", "hardware.micro_batch_size=null")
    _interrupted(project)
    before = [path.name for path in project.checkpoints()]
    project.set(f"hardware.micro_batch_size={[4, 8, 32][round_number]}")
    for command in ("train", "plan"):
        refused = project.bigstep(command, code=2)
        assert "ghost_batch_size" in refused
        assert "Traceback" not in refused
    assert [path.name for path in project.checkpoints()] == before
    project.set("hardware.micro_batch_size=null", f"model.ghost_batch_size={[4, 8, 32][round_number]}")
    started = project.start("dvc", "repro", "train")
    lines = project.until(started, lambda line: line.startswith("epoch 1/"))
    assert not any("resuming from" in line for line in lines)
    os.killpg(started.pid, 9)
    started.communicate()
    project.set("model.ghost_batch_size=16")
    assert "resuming from the checkpoint" in project.finish("train")


@pytest.mark.fault("42", "the code that decides learning changes between kill and resume", rounds=3, rare=True)
def test_other_code_begins_anew_unless_told(round_number: int, project: Project) -> None:
    del round_number
    _interrupted(project)
    path = project.root / "src/bigstep/training/loop.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n# another comment\n", encoding="utf-8")
    started = project.start("dvc", "repro", "train")
    lines = project.until(started, lambda line: line.startswith("epoch 1/"))
    assert any("started with other code" in line for line in lines)
    os.killpg(started.pid, 9)
    started.communicate()
    attempts = next(Path(project.root / ".bigstep/attempts").glob("*.json"))
    assert json.loads(attempts.read_text(encoding="utf-8"))["number"] == 2


@pytest.mark.fault("42a", "the same, with `--ignore-code-change`", rounds=3, rare=True)
def test_other_code_goes_on_where_the_user_vouches_for_it(round_number: int, project: Project) -> None:
    del round_number
    _interrupted(project)
    path = project.root / "src/bigstep/training/loop.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n# another comment\n", encoding="utf-8")
    output = project.bigstep("train", "--ignore-code-change")
    assert "resuming from the checkpoint" in output
    assert "bigstep.resumed_with_other_code" in project.runs()[-1].data.tags
