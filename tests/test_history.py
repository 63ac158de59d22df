"""The history of a training: what its rows and its speed say after a stop."""

import json
import time

import pytest
import torch

from bigstep.runs.metric_log import MetricLog
from bigstep.training.records import StepRecord
from recording import RecordingTracker

CPU = torch.device("cpu")


def _step(number: int) -> StepRecord:
    return StepRecord(number, 0, 1000, torch.tensor(1.0), 1.0, 0.1, None, applied=True, micro_batch_size=8)


def test_a_training_that_goes_on_counts_its_images_and_seconds_of_before() -> None:
    first = MetricLog(RecordingTracker(), CPU, num_epochs=2, steps_per_epoch=4)
    for number in range(3):
        first.add(_step(number))
    time.sleep(0.2)
    kept = json.loads(json.dumps(first.state_dict()))
    second = MetricLog(RecordingTracker(), CPU, num_epochs=2, steps_per_epoch=4)
    second.load_state_dict(kept, 3)
    assert second.images_per_second == pytest.approx(3000 / kept["seconds"], rel=0.2)
    second.add(_step(3))
    assert second.num_images == 4000
    assert second.images_per_second < 4000 / 0.2


def test_a_checkpoint_of_before_they_were_kept_still_goes_on() -> None:
    history = MetricLog(RecordingTracker(), CPU, num_epochs=2, steps_per_epoch=4)
    kept = {name: value for name, value in history.state_dict().items() if name not in ("images", "seconds")}
    history.load_state_dict(kept, 3)
    assert history.num_images == 0
