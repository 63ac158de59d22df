"""What ``auto`` chooses: by a rule for small trainings, else by measuring, and never anew within a run."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigstep.config.model import ModelConfig
from bigstep.config.params import Params, parse_params
from bigstep.console import format_seconds
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.errors import OutOfMemoryError
from bigstep.memory.measurement import resident_bytes
from bigstep.models.building import InputShape
from bigstep.planning.coarse import coarse_sizes, measure_coarsely
from bigstep.planning.memory_budget import OVERHEAD_BYTES, predict
from bigstep.planning.plan import plan_folder
from bigstep.planning.slicing_choice import choose_slicing
from bigstep.planning.slicing_outlook import record_slicing
from bigstep.planning.throughput import SizeMeasurement, ThroughputCurve, choose_curve
from bigstep.planning.work import SMALL_TRAINING, forward_operations, training_operations
from bigstep.project.paths import ProjectPaths
from bigstep.runs.checkpoints import CheckpointWriter
from bigstep.training.setup import build_training
from bigstep.training.snapshot import KeptSlicing, kept_slicing

AUTO = {"micro_batch_size": "auto", "memory_format": "auto"}


def _params(hardware: dict[str, Any] | None = None, width: int = 4, **train: Any) -> Params:
    return parse_params({"model": {"width": width}, "train": train, "hardware": {**AUTO, **(hardware or {})}})


def _budget(room: int) -> dict[str, Any]:
    return {"memory_budget": f"{(resident_bytes() + OVERHEAD_BYTES + room) // 2**20}MiB"}


def _files(project: ProjectPaths) -> set[str]:
    return {path.name for path in project.plans.rglob("*.json")}


@pytest.mark.parametrize(
    ("model", "shape", "operations"),
    [
        (ModelConfig(), InputShape(1, 8, 10), 1_226_752),
        (ModelConfig(width=24), InputShape(1, 28, 10), 8_561_280),
    ],
    ids=["digits", "fashion-mnist"],
)
def test_the_work_is_counted_as_torch_counts_it(model: ModelConfig, shape: InputShape, operations: int) -> None:
    assert forward_operations(model, shape) == operations, "as torch.utils.flop_counter"


def test_digits_and_a_few_photographs_are_small_and_fashion_mnist_is_not(digits: Store, tmp_path: Path) -> None:
    assert training_operations(ProjectPaths(tmp_path), _params(width=32), digits) < 0.04 * SMALL_TRAINING
    photographs, fashion = 1360 * 3 * 37_668_864, 54_000 * 7 * 8_561_280
    assert photographs < 0.2 * SMALL_TRAINING, "2,000 images, three epochs of mobilenet_v3_small at 128 pixels"
    assert fashion > 3 * SMALL_TRAINING, "the preset fashion-mnist"


@pytest.mark.parametrize(("effective", "micro"), [(64, 32), (20, 20), (32, 32), (500, 32)])
def test_a_small_training_is_cut_by_a_rule_and_nothing_is_measured(
    effective: int, micro: int, digits: Store, tmp_path: Path
) -> None:
    project = ProjectPaths(tmp_path)
    fit = choose_slicing(project, _params(effective_batch_size=effective), digits)
    assert (fit.batch.effective_batch_size, fit.batch.micro_batch_size, fit.memory_format) == (effective, micro, "contiguous")
    assert _files(project) == {"work.json", f"peak-{effective}-{micro}.json"}


@contextmanager
def _busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_a_busy_process_beside_a_small_training_changes_nothing(digits: Store, tmp_path: Path) -> None:
    quiet = choose_slicing(ProjectPaths(tmp_path / "quiet"), _params(width=32), digits)
    with _busy_process():
        busy = choose_slicing(ProjectPaths(tmp_path / "busy"), _params(width=32), digits)
    assert quiet == busy
    assert (busy.batch.micro_batch_size, busy.memory_format) == (32, "contiguous")


def test_the_rule_stays_within_the_budget(digits: Store, tmp_path: Path) -> None:
    project, whole = ProjectPaths(tmp_path), _params(width=256, epochs=1)
    sizes = choose_slicing(project, whole, digits).batch
    least, most = (predict(project, whole, digits, sizes.at_most(size)).peak_bytes for size in (1, 32))
    fit = choose_slicing(project, _params(_budget(int(1.15 * (least + most) / 2)), width=256, epochs=1), digits)
    assert 1 <= fit.batch.micro_batch_size < sizes.micro_batch_size == 32
    assert least <= fit.predicted_bytes < most
    with pytest.raises(
        OutOfMemoryError, match=r"expected a step that fits hardware.memory_budget, .* not even a single sample"
    ):
        choose_slicing(project, _params({"memory_budget": "100MiB"}, width=256, epochs=1), digits)


def test_numbers_are_taken_as_they_are(digits: Store, tmp_path: Path) -> None:
    fixed = {"micro_batch_size": 8, "memory_format": "channels_last"}
    kept = KeptSlicing(2, "contiguous")
    fit = choose_slicing(ProjectPaths(tmp_path), _params(fixed, epochs=10**6), digits, kept=kept)
    assert (fit.batch.micro_batch_size, fit.memory_format) == (8, "channels_last")
    assert _files(ProjectPaths(tmp_path)) == {"peak-64-8.json"}


def test_a_choice_is_measured_once_stored_and_read_again(
    digits: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project, params = ProjectPaths(tmp_path), _params(epochs=10**5, effective_batch_size=24)
    fit = choose_slicing(project, params, digits)
    (path,) = project.plans.rglob("auto-*.json")
    assert path.name == "auto-24-any-auto.json"
    measured = json.loads(path.read_text(encoding="utf-8"))
    assert [curve["memory_format"] for curve in measured["ladders"]] == ["contiguous", "channels_last"]
    assert [[rung["micro_batch_size"] for rung in curve["rungs"]] for curve in measured["ladders"]] == [[6, 16, 24]] * 2
    assert choose_slicing(project, params, digits) == fit
    record = record_slicing(project, params, digits, fit)
    assert [size for size, _ in record.predicted] == [1, 2, 4, 8, 16, 24]
    assert dict(record.predicted)[fit.batch.micro_batch_size] == fit.predicted_bytes
    assert {name: [size for size, _ in points] for name, points in record.speeds.items()} == {
        "contiguous": [6, 16, 24],
        "channels_last": [6, 16, 24],
    }
    _store(path, measured, {"contiguous": {6: 10.0, 16: 10.0, 24: 10.0}, "channels_last": {6: 10.0, 16: 50.0, 24: 51.0}})
    capsys.readouterr()
    again = choose_slicing(project, params, digits)
    expected = f"expected: {format_seconds(10**5 * len(digits.indices(Split.TRAIN)) / 50)} for 100000 epochs at 50 samples/s"
    assert expected in capsys.readouterr().out
    assert (again.batch.micro_batch_size, again.memory_format) == (16, "channels_last"), (
        "the smallest within 3 % of the fastest"
    )
    assert again.applied_to(params).hardware.memory_format == "channels_last"
    assert again.tags["bigstep.memory_format"] == "channels_last"


def _store(path: Path, measured: dict[str, Any], speeds: dict[str, dict[int, float]]) -> None:
    for curve in measured["ladders"]:
        for rung in curve["rungs"]:
            rung["samples_per_second"] = speeds[curve["memory_format"]][rung["micro_batch_size"]]
    path.write_text(json.dumps(measured), encoding="utf-8")


def _write_plan(project: ProjectPaths, params: Params, store: Store, speeds: dict[str, dict[int, float]]) -> Path:
    ladders = [
        {
            "precision": params.train.precision,
            "memory_format": name,
            "update_seconds": 0.0,
            "rungs": [vars(SizeMeasurement(size, speed, 0, 0)) for size, speed in rungs.items()],
            "complete": True,
        }
        for name, rungs in speeds.items()
    ]
    path = plan_folder(project, params, store) / f"auto-{params.batch.effective_batch_size}-any-auto.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": 1, "largest": params.batch.effective_batch_size, "ladders": ladders}))
    return path


def test_a_run_keeps_the_choice_of_its_checkpoint_whatever_the_plan_says_later(digits: Store, tmp_path: Path) -> None:
    project, params = ProjectPaths(tmp_path), _params(epochs=10**5)
    path = _write_plan(project, params, digits, {"contiguous": {16: 10.0, 64: 10.0}, "channels_last": {16: 60.0, 64: 90.0}})
    fit = choose_slicing(project, params, digits)
    assert (fit.batch.micro_batch_size, fit.memory_format) == (64, "channels_last")
    state = build_training(digits, fit.batch, fit.applied_to(params), weights=None)
    writer = CheckpointWriter(tmp_path / "checkpoints", 60.0, {})
    assert writer.kept_slicing() is None
    assert writer.save(state, {}, micro_batch_size=64)
    state.guard.close()
    _write_plan(project, params, digits, {"contiguous": {16: 99.0, 64: 10.0}, "channels_last": {16: 1.0, 64: 1.0}})
    other = choose_slicing(project, params, digits)
    assert (other.batch.micro_batch_size, other.memory_format) == (16, "contiguous"), "what a new run takes"
    kept = CheckpointWriter(tmp_path / "checkpoints", 60.0, {}).kept_slicing()
    assert kept == KeptSlicing(64, "channels_last")
    assert choose_slicing(project, params, digits, kept=kept) == fit
    path.unlink()
    assert choose_slicing(project, params, digits, kept=kept) == fit
    assert not path.exists(), "nothing was measured"


def test_a_measured_choice_stays_within_the_budget(digits: Store, tmp_path: Path) -> None:
    project, params = ProjectPaths(tmp_path), _params(epochs=10**4, width=32, effective_batch_size=512)
    _write_plan(project, params, digits, {"contiguous": {16: 10.0, 64: 15.0}, "channels_last": {16: 20.0, 512: 90.0}})
    assert choose_slicing(project, params, digits).batch.micro_batch_size == 512
    sizes = [predict(project, params, digits, choose_slicing(project, params, digits).batch.at_most(m)) for m in (16, 512)]
    tight = _params(_budget(int(1.2 * sizes[0].peak_bytes) + 2**22), epochs=10**4, width=32, effective_batch_size=512)
    fit = choose_slicing(project, tight, digits)
    assert (fit.batch.micro_batch_size, fit.memory_format) == (16, "channels_last")
    assert fit.predicted_bytes < sizes[1].peak_bytes


def test_what_bigstep_plan_has_measured_comes_first(digits: Store, tmp_path: Path) -> None:
    project, params = ProjectPaths(tmp_path), _params(epochs=10**5)
    path = _write_plan(project, params, digits, {"contiguous": {16: 10.0, 64: 90.0}, "channels_last": {16: 60.0, 64: 70.0}})
    assert choose_slicing(project, params, digits).batch.micro_batch_size == 64
    content = json.loads(path.read_text(encoding="utf-8"))
    _store(path, content, {"contiguous": {16: 10.0, 64: 10.0}, "channels_last": {16: 60.0, 64: 20.0}})
    path.rename(path.with_name("measured.json"))
    path.with_name("measured.json").write_text(json.dumps({**content, "others": True}), encoding="utf-8")
    fit = choose_slicing(project, params, digits)
    assert (fit.batch.micro_batch_size, fit.memory_format) == (16, "channels_last")
    one = choose_slicing(project, _params({"memory_format": "contiguous"}, epochs=10**5), digits)
    assert (one.batch.micro_batch_size, one.memory_format) == (16, "contiguous"), "of the format that is asked for"
    small = choose_slicing(project, _params(), digits)
    assert (small.batch.micro_batch_size, small.memory_format) == (32, "contiguous")
    asked = choose_slicing(project, _params(), digits, always_measured=True)
    assert (asked.batch.micro_batch_size, asked.memory_format) == (16, "channels_last")


def test_snapshots_of_former_versions_have_no_choice() -> None:
    assert kept_slicing({"micro_batch_size": [32, 32]}) is None


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, (1,)), (2, (1, 2)), (7, (1, 2, 7)), (32, (8, 16, 32)), (64, (16, 32, 64)), (512, (16, 64, 512))]
)
def test_three_sizes_are_measured(largest: int, sizes: tuple[int, ...]) -> None:
    assert coarse_sizes(largest) == sizes


@given(st.integers(1, 10**5))
def test_sizes_are_within_the_largest(largest: int) -> None:
    sizes = coarse_sizes(largest)
    assert sizes == tuple(sorted(set(sizes)))
    assert sizes[0] >= 1
    assert sizes[-1] == largest


@pytest.mark.parametrize(("num_samples", "expected"), [(1, 1), (20 * 144, 2), (20 * 273, 3), (10**9, 18)])
def test_measuring_takes_a_share_of_the_training(num_samples: int, expected: int) -> None:
    """The training takes a millisecond a sample, and each pair two for each sample of its size."""
    now = 0.0

    def measure(memory_format: str, size: int) -> SizeMeasurement:
        nonlocal now
        now += 2e-3 * size
        return SizeMeasurement(size, 1000.0 + (memory_format == "channels_last"), 0, 0)

    found = list(measure_coarsely((16, 32, 64), ("contiguous", "channels_last"), num_samples, measure, lambda: now))
    order = [("contiguous", 16), ("channels_last", 64), ("contiguous", 64), ("channels_last", 32), ("contiguous", 32)]
    order = [*order, ("channels_last", 16)] * 3  # again as far as there is time
    assert [(name, rung.micro_batch_size) for name, rung in found] == order[:expected]
    assert now <= 2e-3 * 16 + 0.05 * num_samples / 1000 + 1e-9


def test_of_two_formats_the_faster_one_and_the_smaller_of_nearly_equal_sizes() -> None:
    curves = [
        ThroughputCurve("float32", "contiguous", 0.0, (SizeMeasurement(8, 80, 0, 0), SizeMeasurement(64, 98, 0, 0)), True),
        ThroughputCurve("float32", "channels_last", 0.0, (SizeMeasurement(32, 99, 0, 0), SizeMeasurement(64, 100, 9, 0)), True),
    ]
    found = choose_curve(curves, 64, None)
    assert found is not None
    assert (found[0].memory_format, found[1].micro_batch_size, found[1].accumulation_steps) == ("channels_last", 32, 2)
    assert choose_curve(curves[:0], 64, None) is None
