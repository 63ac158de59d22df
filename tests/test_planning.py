"""The slicing that is chosen from measured speed and memory; and what several processes are measured to take."""

import runpy
import shutil
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigstep.commands.plan import PlanRequest, plan
from bigstep.config.batch_sizes import BatchSizes, resolve_batch
from bigstep.config.hardware import HardwareConfig
from bigstep.config.model import ModelConfig
from bigstep.config.params import Params, flatten, parse_params
from bigstep.config.train import TrainConfig
from bigstep.config.units import parse_size
from bigstep.data.store import Store
from bigstep.errors import ConfigError, ProjectError
from bigstep.memory.measurement import resident_bytes
from bigstep.models.small_cnn import SmallCNN
from bigstep.planning import exchange
from bigstep.planning import measure as planning_measure
from bigstep.planning.exchange import ExchangeCost, LoggedNoise, describe, find_exchange
from bigstep.planning.logged_noise import logged_noise
from bigstep.planning.measure import climb_configured
from bigstep.planning.memory_budget import available_bytes, predict, room_to_compute
from bigstep.planning.plan import plan_folder
from bigstep.planning.throughput import (
    PlannedSlicing,
    SizeMeasurement,
    ThroughputCurve,
    candidate_sizes,
    choose,
    measure_until_flat,
)
from bigstep.project.paths import ProjectPaths, StagePaths
from dvc_dependencies import ROOT

COST = ExchangeCost(2, 32, micro_batch_seconds=0.02, exchange_seconds=0.04, gradient_bytes=4 * 2**20)
CHOSEN = ThroughputCurve("float32", "contiguous", 0.0, (), complete=True), PlannedSlicing(64, 64, 1, 1000.0)


def _rungs(*speeds: float) -> list[SizeMeasurement]:
    return [SizeMeasurement(2**i, speed, 100 + 10 * 2**i, 50 + 10 * 2**i) for i, speed in enumerate(speeds)]


@pytest.mark.parametrize(("effective", "sizes"), [(1, (1,)), (2, (1, 2)), (64, (1, 2, 4, 8, 16, 32, 64)), (7, (1, 2, 4, 7))])
def test_the_ladder_ends_with_the_whole_batch(effective: int, sizes: tuple[int, ...]) -> None:
    assert candidate_sizes(effective) == sizes


def test_climbing_stops_after_two_rungs_without_gain() -> None:
    speeds = {1: 10.0, 2: 20.0, 4: 20.1, 8: 20.2, 16: 99.0}
    found = list(measure_until_flat((1, 2, 4, 8, 16), lambda size: SizeMeasurement(size, speeds[size], 0, 0)))
    assert [rung.micro_batch_size for rung in found] == [1, 2, 4, 8]


def test_a_machine_too_busy_to_start_in_time_still_measures_the_first_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was killed, and reported as too little memory."""
    params = parse_params({"model": {"width": 4}})
    curve = climb_configured(params, channels=1, size=8, num_classes=10, seconds=-60.0)
    assert curve.rungs[0].micro_batch_size == 1
    monkeypatch.setattr(planning_measure, "LONGEST_WAIT", 0.0)
    with pytest.raises(ProjectError, match="expected a step of one sample within 0 s, got none; use a smaller model"):
        climb_configured(params, channels=1, size=8, num_classes=10, seconds=-60.0)


def test_one_slow_rung_does_not_stop_the_climb() -> None:
    speeds = {1: 10.0, 2: 9.0, 4: 20.0}
    assert len(list(measure_until_flat((1, 2, 4), lambda size: SizeMeasurement(size, speeds[size], 0, 0)))) == 3


def test_the_fastest_within_the_budget_and_the_smaller_of_equals() -> None:
    rungs = _rungs(10, 20, 39.5, 40, 30)
    choice = choose(rungs, 100, None)
    assert choice is not None
    assert (choice.micro_batch_size, choice.accumulation_steps) == (4, 25)
    tight = choose(rungs, 100, 125)
    assert tight is not None
    assert tight.micro_batch_size == 2
    assert choose(rungs, 100, 109) is None


@given(st.integers(1, 3000), st.lists(st.floats(1, 1e4), min_size=1, max_size=10), st.one_of(st.none(), st.integers(0, 10**4)))
def test_the_effective_batch_is_always_as_asked(effective: int, speeds: list[float], limit: int | None) -> None:
    choice = choose(_rungs(*speeds), effective, limit)
    if choice is None:
        assert limit is not None
        assert limit < 110
        return
    assert choice.effective_batch_size == effective
    assert 1 <= choice.micro_batch_size <= effective
    assert (choice.accumulation_steps - 1) * choice.micro_batch_size < effective
    assert choice.accumulation_steps * choice.micro_batch_size >= effective


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 * 2**30), ("1.5 GB", 1_500_000_000), ("512MiB", 2**29), ("100B", 100), ("1TB", 10**12)]
)
def test_sizes_read_as_they_are_written(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert HardwareConfig.model_validate({"memory_budget": text}).memory_budget == text


def test_auto_takes_what_is_planned_and_needs_the_effective_batch() -> None:
    hardware = HardwareConfig.model_validate({"micro_batch_size": "auto"})
    open_ended = resolve_batch(TrainConfig(effective_batch_size=100), hardware, ModelConfig())
    assert not open_ended.is_planned
    assert str(open_ended) == "effective batch 100, micro-batch size auto"
    planned = resolve_batch(TrainConfig(effective_batch_size=100), hardware, ModelConfig(), 32)
    assert (planned.effective_batch_size, planned.micro_batch_size, planned.accumulation_steps) == (100, 32, 4)
    ghost = resolve_batch(TrainConfig(effective_batch_size=100), hardware, ModelConfig(norm="batch", ghost_batch_size=25), 32)
    assert (ghost.micro_batch_size, ghost.is_planned) == (25, True)
    with pytest.raises(ConfigError, match="leave the micro-batch size to the plan"):
        resolve_batch(TrainConfig(effective_batch_size=None), hardware, ModelConfig())


def test_a_ghost_batch_leaves_nothing_to_plan(tmp_path: Path) -> None:
    params = parse_params({"model": {"norm": "batch", "ghost_batch_size": 32}, "hardware": {"micro_batch_size": None}})
    with pytest.raises(ConfigError, match=r"every micro-batch is model\.ghost_batch_size, 32; set model\.norm to group"):
        plan(ProjectPaths(tmp_path), StagePaths(tmp_path), params, PlanRequest(seconds=1.0))


def test_smaller_micro_batches_keep_the_effective_batch() -> None:
    sizes = BatchSizes(100, 32, 4)
    assert sizes.at_most(16) == BatchSizes(100, 16, 7)
    assert sizes.at_most(64) == sizes
    assert sizes.at_most(0) == BatchSizes(100, 1, 100)


def test_each_prediction_has_a_file_of_its_own_and_a_damaged_one_is_made_again(digits: Store, tmp_path: Path) -> None:
    project, params = ProjectPaths(tmp_path), parse_params({"model": {"width": 4}})
    folder = plan_folder(project, params, digits)
    former = folder / "predicted.json"  # of version 0.2, all in one file
    folder.mkdir(parents=True)
    former.write_text('{"8 = 2 x 4": {"peak_bytes": 1}}', encoding="utf-8")
    found = predict(project, params, digits, BatchSizes(8, 4, 2))
    (path,) = set(folder.iterdir()) - {former}
    path.write_text(path.read_text(encoding="utf-8").replace(f'"peak_bytes": {found.peak_bytes}', '"peak_bytes": 7'))
    content = path.read_bytes()
    predict(project, params, digits, BatchSizes(8, 8, 1))
    assert path.read_bytes() == content, "another worker's file is left alone"
    assert len(list(folder.iterdir())) == 3
    assert predict(project, params, digits, BatchSizes(8, 4, 2)).peak_bytes == 7, "it was read, not predicted again"
    path.write_text(path.read_text(encoding="utf-8").replace('"peak_bytes": 7', '"peak_bytes": "7"'))
    assert predict(project, params, digits, BatchSizes(8, 4, 2)) == found
    assert former.exists()


def test_accumulating_pays_as_the_page_defines_it() -> None:
    model = runpy.run_path(str(ROOT / "benchmarks" / "scale" / "step_model.py"))
    assert COST.best_accumulation(6400.0) == pytest.approx(model["best_micro_batches"](6400, 64, 0.02, 0.04))
    assert COST.best_accumulation(COST.least_noise_scale) == pytest.approx(1)
    high, low = (describe(COST, LoggedNoise(scale, "sage"), 2) for scale in (6400.0, 16.0))
    assert "t = 20.00 ms in each, the sums of a step (4 MiB) E = 40.00 ms: 50% of a step with 2 micro-batches" in high
    assert "\naccumulating pays: with the gradient noise scale of 6,400 samples (run sage)" in high
    assert high.endswith("at A* = 14 micro-batches in each, an effective batch of about 896")
    assert "\naccumulating does not pay: with the gradient noise scale of 16 samples (run sage)" in low
    unknown = describe(COST, None, 2)
    assert "\naccumulating pays where the gradient noise scale is above 32 samples; no run of this model" in unknown


def _shared(**hardware: Any) -> Params:
    sections = {"device": "cpu", "micro_batch_size": "auto", "memory_budget": "4GiB", "memory_format": "contiguous", **hardware}
    return parse_params({"model": {"width": 4}, "train": {"effective_batch_size": 64}, "hardware": sections})


@pytest.mark.slow
def test_the_plan_of_two_processes_measures_their_sums_once(digits: Store, tmp_path: Path, empty_database: Path) -> None:
    """And says when accumulating pays by the noise scale that a run has logged; the plan of one process is as before."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prepared").symlink_to(digits.paths.root)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    project, paths, said = ProjectPaths(tmp_path), StagePaths(tmp_path), []
    alone_params, shared_params = (_shared(processes=count, memory_budget="64GiB") for count in (1, 2))  # this process is large
    for params in (alone_params, shared_params):
        plan(project, paths, params, PlanRequest(seconds=0.5), said.append)
    _log_run(tmp_path, alone_params, 640.0)
    _log_run(tmp_path, parse_params({"model": {"width": 5}}), 7.0)
    plan(project, paths, shared_params, PlanRequest(), said.append)
    alone, unknown, known = said
    assert set(alone) == {"recommended", "budget_bytes", "room_bytes", "ladders"}
    measured = ExchangeCost(**{name: unknown["exchange"][name] for name in vars(COST)})
    assert (measured.processes, measured.micro_batch_size) == (2, min(32, unknown["recommended"]["micro_batch_size"]))
    assert 0 < measured.micro_batch_seconds < 10
    assert 0 < measured.exchange_seconds < 10
    assert unknown["exchange"]["best_accumulation_steps"] is None
    assert known["exchange"] == {
        **unknown["exchange"],
        "noise_scale": 640.0,
        "run": "logged",
        "best_accumulation_steps": measured.best_accumulation(640.0),
    }
    assert not [child for child in psutil.Process().children() if "exchange_worker" in str(child.cmdline())]


def _log_run(root: Path, params: Params, noise_scale: float) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    run = client.create_run("0", run_name="logged")
    for key, value in flatten(params).items():
        client.log_param(run.info.run_id, key, value)
    client.log_metric(run.info.run_id, "noise_scale", 1.0, step=0)
    client.log_metric(run.info.run_id, "noise_scale", noise_scale, step=9)
    client.set_terminated(run.info.run_id, "FINISHED")


def test_without_a_history_no_noise_scale_is_known_and_none_is_made(tmp_path: Path) -> None:
    assert logged_noise(tmp_path, _shared()) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_processes_that_cannot_run_side_by_side_are_refused_in_one_line(
    digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_started", _starting_and_killing(exchange._started))
    with pytest.raises(
        ProjectError, match=r"^hardware\.processes: expected 2 processes to run micro-batches of 32 side by side"
    ):
        find_exchange(ProjectPaths(tmp_path), _shared(processes=2), digits, 2, CHOSEN)
    assert not [child for child in psutil.Process().children() if "exchange_worker" in str(child.cmdline())]


def _starting_and_killing(start: Any) -> Any:
    def started(request: Any) -> Any:
        process = start(request)
        if request.rank == 1:
            process.kill()
        return process

    return started


def test_the_room_of_several_processes_is_a_part_of_the_machine_without_the_vector_of_gradients(digits: Store) -> None:
    resident = resident_bytes()
    one, two = (room_to_compute(params, digits, resident) for params in (_shared(), _shared(processes=2)))
    shared = available_bytes(_shared(processes=2).hardware, resident)
    assert one is not None
    assert two is not None
    assert shared is not None
    assert one == available_bytes(_shared().hardware, resident)
    assert one - shared == 2 * 2**30
    assert shared - two == 4 * sum(
        parameter.numel() for parameter in SmallCNN(channels=1, size=8, num_classes=10, width=4, dropout=0).parameters()
    )
