"""A stage that starts its own processes: one result, one writer, loopback only; and what is left when one of them ends."""

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import psutil
import pytest

from bigstep.config.params import Params, parse_params
from bigstep.data.store import Store
from bigstep.errors import ConfigError, LostStepError, OtherProcessError, OutOfMemoryError, UserError
from bigstep.models.small_cnn import SmallCNN
from bigstep.planning.memory_budget import OVERHEAD_BYTES, available_bytes, predict
from bigstep.project.paths import ProjectPaths
from bigstep.runs.checkpoints import CheckpointWriter
from bigstep.runs.helper_processes import _Helpers, helper_request, training_group
from bigstep.runs.low_memory_marker import failed_micro_batch_size, mark_path
from bigstep.runs.marked_batches import open_batches
from bigstep.runs.training_run import TrainingJob
from bigstep.runtime.device import count_processes, divided
from bigstep.runtime.stop_signals import Signals
from bigstep.step.gradient_sum import GradientSum
from bigstep.training.loop import train_epochs
from bigstep.training.records import StepRecord
from bigstep.training.setup import build_training
from bigstep.training.shares import check_same_start
from bigstep.training.transaction import compute_gradient
from conftest import copy_prepared
from faults.project import Project

SETTINGS = (
    "train.precision=float64",
    "train.epochs=2",
    "train.effective_batch_size=24",
    "train.mixup_alpha=0.3",
    "train.ema_decay=0.9",
    "model.width=8",
    "model.dropout=0.2",
    "hardware.memory_budget=none",
    "hardware.checkpoint_interval=none",
)
STAGE = (sys.executable, "pipelines/train.py")


def started(project: Project, processes: int) -> "subprocess.Popen[str]":
    project.set(f"hardware.processes={processes}")
    return project.start(*STAGE, PYTHONPATH=str(project.root / "src"))


def train(project: Project, processes: int, code: int = 0) -> str:
    process = started(project, processes)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output[-3000:]
    return output


def helpers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    below = psutil.Process(process.pid).children(recursive=True)
    return [child for child in below if "bigstep.runs.helper" in child.cmdline()]


def after_a_checkpoint(project: Project, process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Wait for the first checkpoint, and for a few steps more."""
    deadline = time.monotonic() + 120
    while not project.checkpoints():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    return helpers_of(process)


def rows(project: Project) -> list[list[float]]:
    with (project.root / "results" / "train" / "history.csv").open(encoding="utf-8") as file:
        return [[float(value) for value in row] for row in list(csv.reader(file))[1:]]


def weights(project: Project) -> bytes:
    return (project.root / "results" / "train" / "model.safetensors").read_bytes()


def listening(process: psutil.Process) -> set[str]:
    return {item.laddr.ip for item in process.net_connections("tcp") if item.status == psutil.CONN_LISTEN}


@pytest.fixture
def project(prepared_root: Path, tmp_path: Path) -> Project:
    made = copy_prepared(prepared_root, tmp_path / "project")
    made.set(*SETTINGS)
    return made


@pytest.fixture(scope="module")
def undisturbed(prepared_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Project]:
    """The same training in one process and in two, never disturbed."""
    found = {}
    for count in (1, 2):
        found[count] = copy_prepared(prepared_root, tmp_path_factory.mktemp("undisturbed") / "project")
        found[count].set(*SETTINGS)
        train(found[count], count)
    return found


def assert_equal(found: Project, expected: Project) -> None:
    for mine, other in zip(rows(found), rows(expected), strict=True):
        assert mine == pytest.approx(other, rel=1e-10, abs=1e-10)


@pytest.mark.slow
def test_two_processes_write_what_one_writes_and_one_run(undisturbed: dict[int, Project]) -> None:
    assert_equal(undisturbed[2], undisturbed[1])
    (run,) = undisturbed[2].runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["bigstep.processes"] == "2"
    keys = [(key, step) for key, step, _ in undisturbed[2].history(run.info.run_id)]
    assert len(keys) == len(set(keys)), "each value is logged once"
    assert not undisturbed[2].processes()


@pytest.mark.slow
@pytest.mark.long
def test_a_signal_to_one_process_stops_all_and_another_number_resumes(
    project: Project, undisturbed: dict[int, Project]
) -> None:
    process = started(project, 2)
    (helper,) = after_a_checkpoint(project, process)
    assert listening(helper) | listening(psutil.Process(process.pid)) <= {"127.0.0.1"}
    assert listening(helper), "gloo listens, on the loopback interface"
    helper.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert output.rstrip().endswith("stopped by SIGTERM; run the same command to resume")
    assert not project.processes(5)
    assert "resuming from the checkpoint of step" in train(project, 3)
    assert_equal(project, undisturbed[1])


@pytest.mark.slow
@pytest.mark.parametrize("struck", ["a helper", pytest.param("the stage", marks=pytest.mark.long)])
def test_a_kill_leaves_no_process_and_the_same_command_the_same_bytes(
    struck: str, project: Project, undisturbed: dict[int, Project]
) -> None:
    process = started(project, 2)
    (helper,) = after_a_checkpoint(project, process)
    os.kill(helper.pid if struck == "a helper" else process.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert not project.processes(5)
    if struck == "a helper":
        assert process.returncode == 2, output
        assert output.rstrip().splitlines()[-1] == (
            "bigstep: process 1: expected it to train to the end, got SIGKILL; run the same command to resume"
        )
        assert "Traceback" not in output
    assert "resuming from the checkpoint of step" in train(project, 2)
    assert weights(project) == weights(undisturbed[2])
    assert rows(project) == rows(undisturbed[2])
    assert [run.info.status for run in project.runs()] == ["FINISHED"]


@pytest.mark.slow
def test_an_error_of_one_process_is_one_line(project: Project) -> None:
    project.set("model.norm=batch", "model.ghost_batch_size=12", "model.batch_norm_statistics=plain")
    output = train(project, 2, code=2)
    assert "bigstep: model.batch_norm_statistics: expected corrected, recalibrated or frozen with several processes" in output
    assert not project.processes(5)


def _helpers() -> list[psutil.Process]:
    """Return the helpers of this process, which may have other children: of other tests, such as a server that forks."""
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "bigstep.runs.helper" in child.cmdline()]


def _raise_memory_error(*_: object) -> None:
    raise MemoryError


TOO_LARGE = """
import torch
from bigstep.training import setup

setup.build_training = lambda *_, **options: torch.empty(2**55)
"""


@pytest.mark.slow
def test_a_helper_whose_network_does_not_fit_is_an_out_of_memory_error(
    digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a search takes the trial as infeasible, and goes on."""
    (tmp_path / "sitecustomize.py").write_text(TOO_LARGE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    params = parse_params({"hardware": {"processes": 2, "device": "cpu", "num_workers": 0}, "model": {"width": 4}})
    job = TrainingJob(digits, params, params.batch, 0, CheckpointWriter(tmp_path / "none", 60, {}), tmp_path / "mark.json")
    with (
        pytest.raises(OutOfMemoryError, match="memory: expected model and data to fit"),
        training_group(helper_request(job, None), Signals()) as group,
    ):
        check_same_start(build_training(digits, params.batch, params, weights=None, group=group))


@pytest.mark.slow
def test_helpers_end_when_the_first_process_stops_early(digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a search prunes a trial; the helper waits for a step. What Python prints as it starts is no answer.

    Nor does this process wait where it is out of step with the helper.
    """
    (tmp_path / "sitecustomize.py").write_text("print('welcome')\nprint(1)\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    params = parse_params({"hardware": {"processes": 2, "device": "cpu", "num_workers": 0}, "model": {"width": 4}})
    job = TrainingJob(digits, params, params.batch, 0, CheckpointWriter(tmp_path / "none", 60, {}), tmp_path / "mark.json")
    with training_group(helper_request(job, None), Signals()) as group:
        state = build_training(digits, params.batch, params, weights=None, group=group)
        check_same_start(state)
        batches = open_batches(digits, params, params.batch, state, job.marker, 0)
        training = train_epochs(state, params.train, digits, batches)
        records = list(islice(training, 3))
        children = _helpers()
        assert [record.num_samples for record in records if isinstance(record, StepRecord)] == [64] * 3
        assert len(children) == 1
        monkeypatch.setattr(GradientSum, "replace", _raise_memory_error)  # after the sums: the helper goes on without it
        with pytest.raises(LostStepError, match="process 0: expected its part of the sums"):
            next(training)
        left = time.monotonic()
    assert time.monotonic() - left < 5
    assert not children[0].is_running()


@pytest.mark.slow
def test_what_a_helper_says_is_said_here(digits: Store, tmp_path: Path) -> None:
    params = parse_params({"hardware": {"processes": 2, "device": "cpu", "num_workers": 0}, "model": {"width": 4}})
    job = TrainingJob(digits, params, params.batch, 0, CheckpointWriter(tmp_path / "none", 60, {}), tmp_path / "mark.json")
    elsewhere = replace(helper_request(job, None), prepared=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="nothing") as caught, training_group(elsewhere, Signals()) as group:
        check_same_start(build_training(digits, params.batch, params, weights=None, group=group))
    assert caught.value.exit_code == 2
    assert not _helpers()


@pytest.mark.slow
def test_an_error_of_the_first_process_keeps_its_words(digits: Store, tmp_path: Path) -> None:
    """The helper then fails too, for want of the first process, which says nothing of the cause."""
    params = parse_params({"hardware": {"processes": 2, "device": "cpu", "num_workers": 0}, "model": {"width": 4}})
    job = TrainingJob(digits, params, params.batch, 0, CheckpointWriter(tmp_path / "none", 60, {}), tmp_path / "mark.json")

    def train_and_fail(group: object) -> None:
        state = build_training(digits, params.batch, params, weights=None, group=group)
        check_same_start(state)
        known = {"weight": 64.0, "sizes": (32, 32)}  # as the loop gives them, so that both exchange the same
        compute_gradient(state, lambda: state.accumulator.fail(RuntimeError("of a network"), **known))

    with pytest.raises(RuntimeError, match="of a network"), training_group(helper_request(job, None), Signals()) as group:
        train_and_fail(group)
    assert not _helpers()


@pytest.mark.slow
def test_a_helper_that_is_killed_before_all_have_met_is_noticed(digits: Store, tmp_path: Path) -> None:
    """The first process waits for it where no signal reaches it; a thread does the waiting."""
    params = parse_params({"hardware": {"processes": 3, "device": "cpu", "num_workers": 0}, "model": {"width": 4}})
    job = TrainingJob(digits, params, params.batch, 0, CheckpointWriter(tmp_path / "none", 60, {}), tmp_path / "mark.json")
    helpers = _Helpers(replace(helper_request(job, None), folder=str(tmp_path)), Signals())
    max(_helpers(), key=lambda child: child.pid).kill()
    with pytest.raises(OtherProcessError, match="before the training started"):
        helpers.while_they_live(lambda: threading.Event().wait(60))
    problem = helpers.problem()
    assert str(problem) == "process 2: expected it to train to the end, got SIGKILL; run the same command to resume"
    helpers.end()
    assert not _helpers()


def test_an_error_where_the_processes_meet_is_that_error(digits: Store, tmp_path: Path) -> None:
    """The folder may be gone, say; there are no helpers here."""
    job = TrainingJob(
        digits, params := parse_params({}), params.batch, 0, CheckpointWriter(tmp_path, 60, {}), tmp_path / "mark"
    )
    helpers = _Helpers(replace(helper_request(job, None), count=1), Signals())
    with pytest.raises(FileNotFoundError, match="meeting"):
        helpers.while_they_live(lambda: (tmp_path / "meeting").read_text(encoding="utf-8"))
    assert helpers.while_they_live(lambda: 3) == 3


def test_the_number_of_processes() -> None:
    def params(**sections: object) -> Params:
        return parse_params({"hardware": {"device": "cpu"}, **sections})

    unkeyed = {"train": {"keyed_randomness": False}}
    assert count_processes(params()) == 1
    assert count_processes(params(hardware={"processes": 3, "device": "cpu"})) == 3
    assert count_processes(params(**unkeyed)) == 1
    assert count_processes(params(**unkeyed, hardware={"processes": 1, "device": "cpu"})) == 1
    with pytest.raises(ConfigError, match=r"^train\.keyed_randomness: expected true with several processes"):
        count_processes(params(**unkeyed, hardware={"processes": 2, "device": "cpu"}))
    assert [divided(total, 4) for total in (0, 1, 4, 9)] == [0, 1, 1, 2]


def test_memory_is_that_of_a_vector_of_gradients_more_and_a_cpu_is_shared(digits: Store, tmp_path: Path) -> None:
    def params(processes: int) -> Params:
        hardware = {"processes": processes, "device": "cpu", "memory_budget": "4GiB", "micro_batch_size": 16}
        return parse_params({"hardware": hardware, "model": {"width": 8}, "train": {"precision": "float64"}})

    one, two = (predict(ProjectPaths(tmp_path), params(count), digits, params(count).batch) for count in (1, 2))
    flat = 8 * sum(
        parameter.numel() for parameter in SmallCNN(channels=1, size=8, num_classes=10, width=8, dropout=0).parameters()
    )
    assert (two.peak_bytes - one.peak_bytes, two.bytes_per_sample) == (flat, one.bytes_per_sample)
    room = [available_bytes(params(count).hardware, resident=0) for count in (1, 2, 4)]
    assert [found + OVERHEAD_BYTES for found in room if found is not None] == [4 * 2**30, 2 * 2**30, 2**30]


def test_the_mark_of_each_process_counts(tmp_path: Path) -> None:
    path = tmp_path / "key.memory.json"
    assert failed_micro_batch_size(path) is None
    for rank, size in enumerate((16, 4, 8)):
        mark_path(path, rank).write_text(f'{{"micro_batch_size": {size}}}', encoding="utf-8")
    assert failed_micro_batch_size(path) == 4
    mark_path(path, 1).unlink()
    assert failed_micro_batch_size(path) == 8
