"""What a trial records: names that former versions wrote, and the way through a storage and back."""

import threading
from dataclasses import fields
from pathlib import Path

import optuna
import pytest

from bigstep.search.storage import open_storage, open_study
from bigstep.search.trial_queue import TrialQueue
from bigstep.search.trial_record import TrialRecord
from bigstep.search.workers.worker import sending_heartbeats
from waiting import wait_until

FORMER = {  # attributes of a trial as version 0.2 wrote them
    "key": "replicate-3-7",
    "worker": "host 1 2 3",
    "beat": "1700000000",
    "origin": 5,
    "try": 1,
    "failed": "surplus",
    "start": "noise scale",
    "exact": {"train.learning_rate": 0.004},
    "kind": "replicate",
    "of": 3,
    "seed": 7,
    "micro_batch_asked": 8,
    "effective_batch_size": 64,
    "micro_batch_size": 16,
    "accumulation_steps": 4,
    "learning_rate": 0.004,
    "predicted_bytes": 12345,
    "refused": "its step goes over the budget by 3 MiB",
    "mlflow_run_id": "abc",
    "val_loss": 0.25,
    "val_accuracy": 0.9,
    "best_epoch": 2,
    "epochs": 3,
    "num_updates": 69,
    "diverged": False,
    "seconds": 1.5,
    "images_per_second": 900.0,
    "peak_bytes": 2**20,
    "noise_scale": 31.0,
}
LATER = {"val_f1", "val_mae"}  # of tasks that former versions did not know
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def _study(path: Path) -> optuna.Study:
    return open_study(open_storage(str(path / "study.journal")), "study", ["minimize"])


def test_a_trial_of_a_former_version_is_read_and_written_under_the_same_names(tmp_path: Path) -> None:
    assert len(FORMER) == len(fields(TrialRecord)) - len(LATER)
    study = _study(tmp_path)
    study.enqueue_trial({"x": 1.0}, user_attrs={**FORMER, "note of another program": 1})
    record = TrialRecord.read(_study(tmp_path).get_trials()[0])
    assert {name for name, value in vars(record).items() if value is None} == LATER
    trial = study.ask()
    second = study.ask()
    record.write(second)
    assert second.user_attrs == FORMER
    assert TrialRecord.read(second) == record == TrialRecord.read(trial)


def test_what_is_not_known_yet_is_not_written(tmp_path: Path) -> None:
    trial = _study(tmp_path).ask()
    TrialRecord(start=0, diverged=False).write(trial)
    assert trial.user_attrs == {"start": 0, "diverged": False}
    assert not TrialRecord.read(trial).is_described


def test_a_trial_that_is_queued_again_keeps_its_record_but_not_its_worker(tmp_path: Path) -> None:
    queue = TrialQueue(_study(tmp_path), budget=3, max_asks=9)
    queue.enqueue_once("start-0", {"x": 1.0}, TrialRecord(start=0, exact={"train.seed": 1}))
    queue.enqueue_once("start-0", {"x": 2.0}, TrialRecord(start=0))
    trial = queue.take(None)
    assert trial is not None
    trial.suggest_float("x", 0, 3)
    queue.heartbeat(trial)
    assert queue.fail(trial.number)
    queue.requeue(queue.trials()[0], retries=1)
    records = [TrialRecord.read(item) for item in queue.trials()]
    assert records[0].worker is not None
    assert records[0].heartbeat is not None
    assert records[1:] == [TrialRecord(key="start-0", start=0, exact={"train.seed": 1}, origin=0, retries=1)]
    again = queue.take(None)
    assert again is not None
    assert queue.fail(again.number)
    queue.requeue(queue.trials()[1], retries=1)
    assert len(queue.trials()) == 2, "it was retried once"


def test_heartbeats_are_sent_while_the_block_runs_and_no_longer(tmp_path: Path) -> None:
    study = _study(tmp_path)
    queue = TrialQueue(study, budget=1, max_asks=1)
    queue.enqueue_once("start-0", {"x": 1.0}, TrialRecord())
    trial = queue.take(None)
    assert trial is not None
    assert TrialRecord.read(queue.trials()[0]).heartbeat is None
    with sending_heartbeats(queue, trial, interval=0.01):
        wait_until(lambda: TrialRecord.read(queue.trials()[0]).heartbeat, "no heartbeat was sent")
    assert "bigstep-heartbeat" not in [thread.name for thread in threading.enumerate()]
