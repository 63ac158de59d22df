import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.model import ModelConfig
from bigstep.config.params import parse_params
from bigstep.config.train import TrainConfig
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.errors import CheckpointError
from bigstep.models.building import InputShape
from bigstep.models.model_files import build_classifier
from bigstep.runs.checkpoint_files import check_folder, clear_checkpoints, load_latest, read_commit, save_checkpoint
from bigstep.runs.checkpoints import CheckpointWriter, checkpoint_interval
from bigstep.runs.training_run import TrainingJob, TrainingRun
from bigstep.runtime.stop_signals import Signals
from bigstep.tracking.spool import Spool
from bigstep.tracking.spool_tracker import SpoolTracker
from bigstep.training.loop import train_epochs
from bigstep.training.records import EpochRecord, StepRecord, Validation
from bigstep.training.setup import build_training
from bigstep.training.snapshot import Snapshot, is_finite, restore_snapshot, take_snapshot
from bigstep.training.state import TrainingState, build_state
from bigstep.training.training_batches import TrainingBatches
from building import ten_classes


def _snapshot(step: int) -> Snapshot:
    return Snapshot(step, {"a": torch.full((100,), float(step)), "b": torch.arange(3)}, {"step": step, "x": 0.1 + 0.2})


def test_what_is_committed_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 9):
        save_checkpoint(tmp_path, _snapshot(step), {"torch": "2"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000005", "step-000000009"]
    found = load_latest(tmp_path)
    assert found is not None
    snapshot, commit, problems = found
    assert (snapshot.step, commit.versions, problems) == (9, {"torch": "2"}, [])
    assert torch.equal(snapshot.tensors["a"], torch.full((100,), 9.0))
    assert snapshot.values == {"step": 9, "x": 0.1 + 0.2}
    assert load_latest(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "values.json", "commit.json"])
@pytest.mark.parametrize("fault", ["flip", "empty", "one", "half", "less", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(name: str, fault: str, tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, _snapshot(step), {})
    path = tmp_path / "step-000000002" / name
    content = bytearray(path.read_bytes())
    if fault == "missing":
        path.unlink()
    elif fault == "flip":
        content[len(content) // 2] ^= 0x80
        path.write_bytes(content)
    else:
        path.write_bytes(content[: {"empty": 0, "one": 1, "half": len(content) // 2, "less": len(content) - 2}[fault]])
    found = load_latest(tmp_path)
    assert found is not None
    assert found[0].step == 1
    if name == "commit.json" and fault == "missing":
        assert found[2] == []  # it never was a checkpoint
    else:
        assert name in found[2][0]
        assert check_folder(path.parent) is not None


def test_with_all_damaged_nothing_begins_silently(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, _snapshot(step), {})
        (tmp_path / f"step-00000000{step}" / "values.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="expected an intact one") as caught:
        load_latest(tmp_path)
    assert caught.value.exit_code == 4
    clear_checkpoints(tmp_path)
    assert load_latest(tmp_path) is None


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _snapshot(1), {})
    shutil.copytree(tmp_path / "step-000000001", tmp_path / ".step-000000002.77.tmp")
    (tmp_path / "step-000000003").mkdir()
    found = load_latest(tmp_path)
    assert found is not None
    assert found[0].step == 1
    save_checkpoint(tmp_path, _snapshot(4), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000004"]


def test_a_write_that_fails_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, _snapshot(1), {})
    monkeypatch.setattr("safetensors.torch.save_file", _no_space)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, _snapshot(2), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def _no_space(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_the_same_step_is_not_written_twice(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, _snapshot(1), {})
    before = (path / "commit.json").stat().st_mtime_ns
    save_checkpoint(tmp_path, _snapshot(1), {})
    assert (path / "commit.json").stat().st_mtime_ns == before
    assert read_commit(path).step == 1


def test_tensors_that_share_memory_as_tied_weights_do_are_each_there(tmp_path: Path) -> None:
    tied = torch.arange(6.0)
    save_checkpoint(tmp_path, Snapshot(1, {"a": tied, "b": tied, "part": tied[2:4]}, {}), {})
    found = load_latest(tmp_path)
    assert found is not None
    assert {name: tensor.tolist() for name, tensor in found[0].tensors.items()} == {
        "a": tied.tolist(),
        "b": tied.tolist(),
        "part": [2.0, 3.0],
    }


CASES = {
    "adamw cosine": {},
    "sgd nesterov step": {
        "optimizer": "sgd",
        "nesterov": True,
        "schedule": "step",
        "lr_decay_epochs": 1,
        "learning_rate": 0.05,
    },
    "plateau": {"schedule": "plateau", "warmup_fraction": 0.0, "plateau_patience": 0},
    "average": {"ema_decay": 0.9},
    "float16": {"precision": "float16"},
    "bfloat16": {"precision": "bfloat16"},
    "dropout without keys": {"keyed_randomness": False},
    "mixup": {"mixup_alpha": 0.4},
    "transforms": {"augmentation": ("RandomHorizontalFlip",), "keyed_randomness": False},
    "patience": {"early_stopping_patience": 1},
}


def _begin(store: Store, train: TrainConfig, batch: BatchSizes, model: ModelConfig) -> TrainingState:
    torch.manual_seed(3)
    manifest = store.manifest
    shape = InputShape(manifest.channels, manifest.size, len(manifest.classes))
    classifier = build_classifier(model, shape, mean=manifest.mean, std=manifest.std)
    return build_state(
        classifier,
        train,
        batch,
        num_samples=len(store.indices(Split.TRAIN)),
        **ten_classes(train),
        model=model,
        noise="first",
    )


def _records(state: TrainingState, train: TrainConfig, store: Store, size: int) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for record in train_epochs(state, train, store, TrainingBatches(store, train, size, 0)):
        if isinstance(record, StepRecord):
            found.append((record.step, float(record.loss), record.gradient_norm, record.learning_rate, record.noise_scale))
        else:
            found.append((record.epoch, record.train_loss, record.validation.loss, record.num_updates, record.is_best))
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop", [3, 9])
def test_a_training_put_on_disk_anywhere_ends_in_the_same_bits(case: str, stop: int, digits: Store, tmp_path: Path) -> None:
    train = TrainConfig(**{"epochs": 3, "effective_batch_size": 200, "learning_rate": 0.004, **CASES[case]})
    model, batch = ModelConfig(width=4, dropout=0.2), BatchSizes(200, 64, 4)
    whole = _begin(digits, train, batch, model)
    expected = _records(whole, train, digits, 200)
    first = _begin(digits, train, batch, model)
    seen: list[Any] = []
    for record in train_epochs(first, train, digits, TrainingBatches(digits, train, 200, 0)):
        seen.append(record)
        if len(seen) == stop:
            save_checkpoint(tmp_path, take_snapshot(first, micro_batch_size=64), {})
            break
    torch.rand(100)  # what happened to torch's random state meanwhile
    again = _begin(digits, train, batch, model)
    found = load_latest(tmp_path)
    assert found is not None
    restore_snapshot(again, found[0], micro_batch_size=64)
    rest = _records(again, train, digits, 200)
    assert rest == expected[stop:]
    for name, tensor in whole.classifier.state_dict().items():
        assert torch.equal(again.classifier.state_dict()[name], tensor), name
    assert whole.best is not None
    assert again.best is not None
    for name, tensor in whole.best.weights.items():
        assert torch.equal(again.best.weights[name], tensor), name


def test_a_checkpoint_of_an_earlier_version_is_restored(digits: Store) -> None:
    """It had torch's StepLR, and the number of samples where now the weight is."""
    train, model = TrainConfig(**{"epochs": 3, "effective_batch_size": 200, **CASES["sgd nesterov step"]}), ModelConfig(width=4)
    batch = BatchSizes(200, 64, 4)
    expected = _records(_begin(digits, train, batch, model), train, digits, 200)
    first = _begin(digits, train, batch, model)
    for record in train_epochs(first, train, digits, TrainingBatches(digits, train, 200, 0)):
        if isinstance(record, StepRecord) and record.step == 2:
            break
    snapshot = take_snapshot(first, micro_batch_size=64)
    values = json.loads(json.dumps(snapshot.values))
    values["epoch_samples"] = values.pop("epoch_weights")
    del values["schedule"]["_schedulers"][1]["lr_lambdas"]
    values["schedule"]["_schedulers"][1] |= {"step_size": 5, "gamma": 0.1}
    again = _begin(digits, train, batch, model)
    restore_snapshot(again, replace(snapshot, values=values), micro_batch_size=64)
    assert _records(again, train, digits, 200) == expected[3:]


@pytest.mark.parametrize("size", [200, 25])
def test_a_training_goes_on_with_another_micro_batch_size(size: int, digits: Store, tmp_path: Path) -> None:
    train, model = TrainConfig(epochs=2, effective_batch_size=200, precision="float64"), ModelConfig(width=4)
    expected = _records(_begin(digits, train, BatchSizes(200, 64, 4), model), train, digits, 200)
    first = _begin(digits, train, BatchSizes(200, 64, 4), model)
    for record in train_epochs(first, train, digits, TrainingBatches(digits, train, 200, 0)):
        if isinstance(record, EpochRecord):
            break
    first.accumulator.micro_batch_size = 32  # as after memory ran out
    save_checkpoint(tmp_path, take_snapshot(first, micro_batch_size=64), {})
    found = load_latest(tmp_path)
    assert found is not None
    again = _begin(digits, train, BatchSizes(200, size, -(-200 // size)), model)
    restore_snapshot(again, found[0], micro_batch_size=size)
    assert again.accumulator.micro_batch_size == size
    rest = _records(again, train, digits, 200)
    for one, other in zip(rest, expected[-len(rest) :], strict=True):
        assert one[:3] == pytest.approx(other[:3], rel=1e-10)
    same = _begin(digits, train, BatchSizes(200, 64, 4), model)
    restore_snapshot(same, found[0], micro_batch_size=64)
    assert same.accumulator.micro_batch_size == 32


def test_a_state_that_is_not_finite_is_told(digits: Store) -> None:
    state = _begin(digits, TrainConfig(), BatchSizes(64, 64, 1), ModelConfig(width=4))
    assert is_finite(state)
    next(state.classifier.parameters()).data.view(-1)[0] = float("inf")
    assert not is_finite(state)


def test_values_on_disk_are_plain_json(digits: Store, tmp_path: Path) -> None:
    state = _begin(digits, TrainConfig(), BatchSizes(64, 64, 1), ModelConfig(width=4))
    path = save_checkpoint(tmp_path, take_snapshot(state, micro_batch_size=64), {})
    assert json.loads((path / "values.json").read_text(encoding="utf-8"))["counters"]["step"] == 0


@pytest.mark.parametrize(
    ("longest", "cost", "life", "expected"),
    [
        (60, None, None, 5),  # the first of a start comes soon
        (60, None, 15, 5),
        (2, None, None, 2),  # never later than hardware.checkpoint_interval
        (60, 0.01, None, 5),
        (60, 0.2, None, 20),  # a hundredth of the time
        (60, 5.0, None, 60),
        (60, 0.3, 15, 3),  # Young: sqrt(2 * 0.3 * 15)
        (60, 0.3, 100_000, 60),
        (float("inf"), None, None, float("inf")),  # none: at the ends of epochs only
        (float("inf"), 0.3, 15, float("inf")),
    ],
)
def test_the_interval_follows_the_cost_and_the_kills(longest: float, cost: float, life: float, expected: float) -> None:
    assert checkpoint_interval(longest, cost, life) == pytest.approx(expected)


def test_starts_are_counted_and_forgotten_at_the_end(tmp_path: Path) -> None:
    now = [0.0]
    first = CheckpointWriter(tmp_path / "a.1", 60.0, {}, clock=lambda: now[0])
    assert first.restore(None, micro_batch_size=1) is None  # type: ignore[arg-type] # there is nothing to restore
    now[0] = 4.9
    assert not first.is_due(at_epoch_end=False)
    now[0] = 5.1
    assert first.is_due(at_epoch_end=False)
    second = CheckpointWriter(tmp_path / "a.1", 60.0, {})
    second.restore(None, micro_batch_size=1)  # type: ignore[arg-type]
    assert len(json.loads((tmp_path / "a.1.starts.json").read_text())["starts"]) == 2
    assert second.is_due(at_epoch_end=False) is False
    second.clear()
    assert not list(tmp_path.iterdir())


def test_a_trial_that_was_trained_to_its_end_is_not_pruned_where_it_is_resumed(digits: Store, tmp_path: Path) -> None:
    params = parse_params({"train": {"epochs": 2, "effective_batch_size": 512}, "model": {"width": 4}})
    job = TrainingJob(
        digits, params, BatchSizes(512, 512, 1), 0, CheckpointWriter(tmp_path / "c", float("inf"), {}), tmp_path / "mark.json"
    )
    asked: list[list[int]] = []

    def stops(samples: int, _: Validation) -> bool:
        asked[-1].append(samples)
        return samples == 2 * len(digits.indices(Split.TRAIN))

    with closing(Spool(tmp_path / "spool")) as spool:
        for _ in range(2):  # the second time nothing is left to train
            asked.append([])
            state = build_training(digits, job.batch, params, weights=None)
            resumed = job.checkpoints.restore(state, micro_batch_size=512)
            run = TrainingRun(job, state, SpoolTracker(spool), Signals(), resumed)
            assert run.run(stops) is False
            assert (state.epoch, resumed is None) == (2, len(asked) == 1)
            state.guard.close()
    assert asked[0] == asked[1]
