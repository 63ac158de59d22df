"""The metric log of a training: its rows, its metrics, and its speed after a stop."""

import json

import pytest
import torch

from bigstep.runs.metric_log import FLUSH_SECONDS, MetricLog
from bigstep.training.records import EpochRecord, StepRecord, Validation
from recording import RecordingTracker
from waiting import Clock

CPU = torch.device("cpu")


def _log(tracker: RecordingTracker, clock: Clock) -> MetricLog:
    return MetricLog(tracker, CPU, num_epochs=2, steps_per_epoch=4, clock=clock)


def _values(tracker: RecordingTracker, key: str) -> list[float]:
    return [metric.value for metric in tracker.metrics if metric.key == key]


def _step(number: int, loss: float = 1.0) -> StepRecord:
    return StepRecord(number, 0, 1000, torch.tensor(loss), 1000.0, 1.0, 0.1, None, applied=True, micro_batch_size=8)


def test_a_resumed_training_counts_the_images_and_seconds_before_it() -> None:
    clock = Clock()
    first = _log(RecordingTracker(), clock)
    for number in range(3):
        first.add(_step(number))
        clock.now += 2.0
    kept = json.loads(json.dumps(first.state_dict()))
    clock.now += 3600.0  # between a kill and the next start
    second = _log(RecordingTracker(), clock)
    second.load_state_dict(kept, 3)
    assert second.images_per_second == pytest.approx(3000 / 6.0)
    second.add(_step(3))
    clock.now += 2.0
    assert second.num_images == 4000
    assert second.images_per_second == pytest.approx(4000 / 8.0)


def test_metrics_are_sent_in_batches_and_none_is_lost() -> None:
    clock, tracker = Clock(), RecordingTracker()
    log = _log(tracker, clock)
    log.add(_step(0))
    assert _values(tracker, "step_loss") == []
    clock.now += FLUSH_SECONDS + 0.1
    log.add(_step(1, 3.0))
    assert _values(tracker, "step_loss") == [1.0, 3.0]


def test_train_loss_is_the_mean_of_an_epoch_in_mlflow_as_in_the_rows() -> None:
    clock, tracker = Clock(), RecordingTracker()
    log = _log(tracker, clock)
    log.add(_step(0, 1.0))
    log.add(_step(1, 3.0))
    clock.now += 1.0
    log.add(EpochRecord(0, 2, 0, 2.0, Validation(0.5, 0.75), is_best=True, peak_bytes=None))
    assert _values(tracker, "train_loss") == [log.rows[0]["train_loss"]] == [2.0]
    assert _values(tracker, "step_loss") == [1.0, 3.0]


def test_epochs_count_from_one_in_rows_in_mlflow_and_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    clock, tracker = Clock(), RecordingTracker()
    log = _log(tracker, clock)
    for number in range(2):
        clock.now += 1.0
        log.add(EpochRecord(number, 2, 0, 2.0, Validation(0.5, 0.75), is_best=True, peak_bytes=None))
    assert [row["epoch"] for row in log.rows] == _values(tracker, "epoch") == [1, 2]
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["epoch 1/2", "epoch 2/2"]


def test_losses_of_a_small_unit_keep_their_digits_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    clock, log = Clock(), _log(RecordingTracker(), Clock())
    clock = Clock()
    log = _log(RecordingTracker(), clock)
    clock.now += 1.0
    log.add(EpochRecord(0, 2, 0, 2.5e-6, Validation(1.25e-6, 0.75), is_best=True, peak_bytes=None))
    assert "  loss 2.500e-06  val_loss 1.250e-06  val_accuracy 0.7500 best" in capsys.readouterr().out


def test_rows_of_a_former_checkpoint_that_counted_from_zero_are_counted_from_one() -> None:
    log = _log(RecordingTracker(), Clock())
    rows = [{"epoch": number, "val_loss": 1.0 - number} for number in range(3)]
    log.load_state_dict({**log.state_dict(), "rows": rows}, 12)
    assert log.rows == [{**row, "epoch": row["epoch"] + 1} for row in rows]
    kept = log.state_dict()
    log.load_state_dict(kept, 12)
    assert log.rows == kept["rows"]


def test_a_checkpoint_without_images_and_seconds_still_loads() -> None:
    log = _log(RecordingTracker(), Clock())
    kept = {name: value for name, value in log.state_dict().items() if name not in ("images", "seconds")}
    log.load_state_dict(kept, 3)
    assert log.num_images == 0
