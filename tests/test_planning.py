"""The slicing that is chosen from measured speed and memory."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigstep.commands.plan import PlanRequest, plan
from bigstep.config.batch_sizes import BatchSizes, resolve_batch
from bigstep.config.hardware import HardwareConfig
from bigstep.config.model import ModelConfig
from bigstep.config.params import parse_params
from bigstep.config.train import TrainConfig
from bigstep.config.units import parse_size
from bigstep.data.store import Store
from bigstep.errors import ConfigError
from bigstep.planning.memory_budget import predict
from bigstep.planning.plan import plan_folder
from bigstep.planning.throughput import SizeMeasurement, candidate_sizes, choose, measure_until_flat
from bigstep.project.paths import ProjectPaths, StagePaths


def _rungs(*speeds: float) -> list[SizeMeasurement]:
    return [SizeMeasurement(2**i, speed, 100 + 10 * 2**i, 50 + 10 * 2**i) for i, speed in enumerate(speeds)]


@pytest.mark.parametrize(("effective", "sizes"), [(1, (1,)), (2, (1, 2)), (64, (1, 2, 4, 8, 16, 32, 64)), (7, (1, 2, 4, 7))])
def test_the_ladder_ends_with_the_whole_batch(effective: int, sizes: tuple[int, ...]) -> None:
    assert candidate_sizes(effective) == sizes


def test_climbing_stops_after_two_rungs_without_gain() -> None:
    speeds = {1: 10.0, 2: 20.0, 4: 20.1, 8: 20.2, 16: 99.0}
    found = list(measure_until_flat((1, 2, 4, 8, 16), lambda size: SizeMeasurement(size, speeds[size], 0, 0)))
    assert [rung.micro_batch_size for rung in found] == [1, 2, 4, 8]


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
    assert str(open_ended) == "effective batch 100, cut as planned"
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
