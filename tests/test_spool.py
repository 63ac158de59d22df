import json
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigstep.atomic_files import read_record
from bigstep.config.params import parse_params
from bigstep.errors import ProjectError
from bigstep.project.attempts import begin_stage
from bigstep.project.paths import ProjectPaths, StagePaths
from bigstep.project.stage_inputs import StageInputs
from bigstep.runs import tracked_run as tracked_runs
from bigstep.runs.cleaning import KEPT_SPOOLS
from bigstep.runs.tracked_run import deliver_others, tracked_run
from bigstep.runtime.stop_signals import Signals
from bigstep.stages.attempt_run import stage_run
from bigstep.stages.stage_runner import Stage
from bigstep.tracking import spool_delivery as delivery
from bigstep.tracking.database import open_client
from bigstep.tracking.spool import Sent, Spool, delivered_spools, spool_lock, unfinished_spools
from bigstep.tracking.spool_delivery import SpoolDelivery
from bigstep.tracking.spool_tracker import SpoolTracker
from bigstep.tracking.tracker import Metric, ModelRecord, Tracker
from contracts import TrackerContract
from waiting import Clock, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


OPENED: list[Spool] = []


@pytest.fixture(autouse=True)
def nothing_open() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def _begin(folder: Path, uri: str, experiment: str = "spooled") -> SpoolTracker:
    spool = Spool(folder)
    OPENED.append(spool)
    spool.begin(uri, experiment)
    return SpoolTracker(spool)


def _drain(spool: Spool, patience: float = 20.0) -> bool:
    courier = SpoolDelivery(spool)
    courier.start()
    return courier.flush(patience)


def _history(uri: str, run_id: str | None, key: str = "loss") -> list[tuple[int, float]]:
    assert run_id is not None
    return sorted((item.step, item.value) for item in open_client(uri).get_metric_history(run_id, key))


class TestSpoolTracker(TrackerContract):
    """The same contract, all the way through the journal and the courier into MLflow."""

    @pytest.fixture(autouse=True)
    def store(self, uri: str) -> None:
        self.uri = uri

    def make(self, folder: Path) -> Tracker:
        return _begin(folder / "spool", self.uri)

    def values(self, tracker: SpoolTracker) -> dict[str, Any]:
        assert _drain(tracker.spool)
        client, run_id = open_client(self.uri), tracker.spool.sent.run_id
        assert run_id is not None
        run = client.get_run(run_id)
        history = client.get_metric_history(run_id, "loss") if "loss" in run.data.metrics else []
        folders = [item.path for item in client.list_artifacts(run_id)]
        return {
            "params": run.data.params,
            "metrics": [(item.key, item.value, item.step) for item in sorted(history, key=lambda item: item.step)],
            "tags": run.data.tags,
            "files": [item.path for folder in folders for item in client.list_artifacts(run_id, folder)],
            "datasets": [item.dataset.name for item in run.inputs.dataset_inputs],
            "status": run.info.status,
        }


def test_a_journal_told_twice_and_a_repeated_step_change_nothing(uri: str, tmp_path: Path) -> None:
    tracker = _begin(tmp_path / "s", uri)
    tracker.log_metrics([Metric("loss", 1.0, 0, 10), Metric("loss", 0.5, 1, 20)])
    assert _drain(tracker.spool)
    run_id = tracker.spool.sent.run_id
    tracker.spool.close()
    again = _begin(tmp_path / "s", uri)  # as after a kill, from a checkpoint at step 1
    again.log_metrics([Metric("loss", 0.5, 1, 99), Metric("loss", 0.25, 2, 100)])
    again.spool.sent = Sent(run_id, 0)  # as after a kill between telling and noting it
    again.finish("FINISHED")
    assert _drain(again.spool)
    assert again.spool.sent.run_id == run_id
    assert _history(uri, run_id) == [(0, 1.0), (1, 0.5), (2, 0.25)]


@pytest.mark.parametrize("rest", [b'{"entry": "met', b"\x00\xff", b'{"entry": "tags"}garbage\n', b"\n"])
def test_half_a_line_is_cut(rest: bytes, uri: str, tmp_path: Path) -> None:
    tracker = _begin(tmp_path / "s", uri)
    tracker.log_metrics([Metric("loss", 1.0, 0, 10)])
    tracker.spool.close()
    with tracker.spool.path.open("ab") as file:
        file.write(rest)
    again = _begin(tmp_path / "s", uri)
    again.log_metrics([Metric("loss", 0.5, 1, 20)])
    assert [entry["rows"][0][1] for entry, _ in again.spool.entries()] == [1.0, 0.5]


def test_messages_join_metrics_and_keep_the_order(uri: str, tmp_path: Path) -> None:
    tracker = _begin(tmp_path / "s", uri)
    for step in range(1500):
        tracker.log_metrics([Metric("loss", 0.0, step, step), Metric("rate", 0.0, step, step)])
        if step == 700:
            tracker.set_tags({"a": "b"})
    messages = list(tracker.spool.batches(0))
    assert [entry["entry"] for entry, _ in messages] == ["metrics", "metrics", "tags", "metrics", "metrics"]
    assert all(len(entry.get("rows", ())) <= 1000 for entry, _ in messages)
    assert [row[2] for entry, _ in messages for row in entry.get("rows", ())] == [step for step in range(1500) for _ in "ab"]
    assert messages[-1][1] == tracker.spool.path.stat().st_size
    for _, offset in messages:  # each is the beginning of an entry: delivery may go on from any
        assert offset == messages[-1][1] or next(tracker.spool.entries(offset))


def test_a_run_begun_by_a_process_killed_before_it_noted_it_is_found(uri: str, tmp_path: Path) -> None:
    tracker = _begin(tmp_path / "s", uri)
    tracker.set_tags({"a": "b"})
    assert _drain(tracker.spool)
    run_id = tracker.spool.sent.run_id
    (tmp_path / "s" / "sent.json").unlink()
    assert _drain(tracker.spool)
    assert tracker.spool.sent.run_id == run_id


def test_a_run_given_by_mlflow_takes_the_history_over(uri: str, tmp_path: Path) -> None:
    tracker = _begin(tmp_path / "s", uri)
    tracker.log_metrics([Metric("loss", 1.0, 0, 10)])
    assert _drain(tracker.spool)
    old = tracker.spool.sent.run_id
    client = open_client(uri)
    assert old is not None
    new = client.create_run(client.get_run(old).info.experiment_id).info.run_id
    tracker.spool.close()
    again = _begin(tmp_path / "s", uri)
    again.continue_run(new)
    again.log_metrics([Metric("loss", 1.0, 0, 99), Metric("loss", 0.5, 1, 20)])
    again.finish("FINISHED")
    assert _drain(again.spool)
    assert _history(uri, new) == [(0, 1.0), (1, 0.5)]
    assert client.get_run(new).data.tags["continues"] == old
    assert client.get_run(old).data.tags["continued_by"] == new
    assert [client.get_run(item).info.status for item in (old, new)] == ["KILLED", "FINISHED"]


def test_a_store_that_was_deleted_is_told_everything_again(uri: str, tmp_path: Path, empty_database: Path) -> None:
    tracker = _begin(tmp_path / "s", uri)
    tracker.log_metrics([Metric("loss", 1.0, 0, 10)])
    assert _drain(tracker.spool)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    tracker.log_metrics([Metric("loss", 0.5, 1, 20)])
    assert _drain(tracker.spool)
    assert _history(uri, tracker.spool.sent.run_id) == [(0, 1.0), (1, 0.5)]


def test_a_server_that_is_gone_holds_nothing_up_and_is_told_later(uri: str, tmp_path: Path) -> None:
    tracker = _begin(tmp_path / "spools" / "key.1", "http://127.0.0.1:9")  # nobody listens
    clock = Clock()
    courier = SpoolDelivery(tracker.spool, clock=lambda: clock.sleep(1.0) or clock())
    started = time.monotonic()
    courier.start()
    for step in range(2000):
        tracker.log_metrics([Metric("loss", float(step), step, step)])
    assert time.monotonic() - started < 2
    assert not courier.flush(10.0)
    assert courier.problem is not None
    assert not tracker.spool.is_delivered()
    tracker.spool.close()
    origin = tmp_path / "spools" / "key.1" / "origin.json"
    origin.write_text(json.dumps({**json.loads(origin.read_text(encoding="utf-8")), "uri": uri}), encoding="utf-8")
    assert unfinished_spools(tmp_path / "spools") == [tmp_path / "spools" / "key.1"]
    assert deliver_others(tmp_path / "spools") == ["key.1"]
    assert unfinished_spools(tmp_path / "spools") == []
    run_id = read_record(Sent, tmp_path / "spools" / "key.1" / "sent.json").run_id
    assert _history(uri, run_id) == [(step, float(step)) for step in range(2000)]
    assert run_id is not None
    assert open_client(uri).get_run(run_id).info.status == "KILLED"


def test_a_store_that_fails_for_a_while_is_tried_again(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = delivery.deliver, iter(range(3))

    def failing(*arguments: Any) -> None:
        if next(failures, None) is not None:
            raise OSError("database is locked")
        real(*arguments)

    monkeypatch.setattr(delivery, "deliver", failing)
    tracker = _begin(tmp_path / "s", uri)
    tracker.log_metrics([Metric("loss", 1.0, 0, 10)])
    courier = SpoolDelivery(tracker.spool, interval=0.05)
    courier.start()
    assert courier.flush()
    assert next(failures, None) is None
    assert _history(uri, tracker.spool.sent.run_id) == [(0, 1.0)]


def test_a_run_that_is_not_waited_for_gets_all_that_was_logged_before_mlflow_answered(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, opens = threading.Event(), delivery.open_run
    monkeypatch.setattr(delivery, "open_run", lambda *args, **options: answers.wait(60) and opens(*args, **options))
    told = {"params": {"a": 1}, "tags": {}, "wait_seconds": 0}
    with tracked_run(tmp_path / "spool", uri, "Default", **told) as tracked:
        tracked.tracker.log_metrics([Metric("loss", 1.0, 0, 10)])
        assert tracked.run_id() is None
        answers.set()
        tracked.tracker.log_metrics([Metric("loss", 0.5, 1, 20)])
    assert tracked.delivered
    with pytest.raises(ValueError, match="closed file"):
        tracked.tracker.set_tags({"late": "1"})
    assert _history(uri, tracked.run_id()) == [(0, 1.0), (1, 0.5)]
    assert open_client(uri).get_run(tracked.run_id()).info.status == "FINISHED"


def test_a_run_waits_for_its_spool_and_never_writes_beside_another_process(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, held, free = tmp_path / "spool", threading.Event(), threading.Event()
    options = {"params": {"a": 1}, "tags": {}, "wait_seconds": 60}

    def hold() -> None:
        with spool_lock(folder):
            held.set()
            free.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    with monkeypatch.context() as patched:
        patched.setattr(tracked_runs, "LOCK_SECONDS", 0.05)
        with pytest.raises(ProjectError, match="expected no other process"), tracked_run(folder, uri, "Default", **options):
            pass
    assert not (folder / "journal.jsonl").exists()
    threading.Timer(0.2, free.set).start()
    with tracked_run(folder, uri, "Default", **options) as tracked:
        assert free.is_set()
    thread.join(60)
    assert tracked.delivered


@pytest.mark.parametrize("expected", [True, False])
def test_what_a_models_delivery_imports_is_imported_while_nothing_waits_for_it(
    expected: bool, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    monkeypatch.setattr(delivery, "preload_model", lambda: loads.append(threading.current_thread().name))
    told = {"params": {"a": 1}, "tags": {}, "wait_seconds": 60}
    with tracked_run(
        tmp_path / "spool", uri, "Default", **told, delivery=partial(SpoolDelivery, expects_model=expected)
    ) as tracked:
        wait_until(lambda: bool(loads) or not expected, "nothing was imported")
        tracked.tracker.log_metrics([Metric("loss", 1.0, 0, 10)])
    assert loads == (["bigstep-courier"] if expected else [])


def test_what_is_heavy_waits_for_the_end(uri: str, tmp_path: Path) -> None:
    tracker = _begin(tmp_path / "s", uri)
    tracker.finish("FINISHED")
    courier = SpoolDelivery(tracker.spool)
    courier.start(20.0)
    assert not tracker.spool.is_delivered()
    assert courier.flush()
    assert tracker.spool.is_delivered()


def test_in_a_process_of_its_own_a_model_is_sent_as_soon_as_it_is_logged(uri: str, tmp_path: Path) -> None:
    spool = _begin(tmp_path / "s", uri).spool
    courier = SpoolDelivery(spool, at_once=True, interval=600.0)

    def wake() -> None:
        shutil.rmtree(tmp_path / "s" / "files")  # as if it had been sent long ago
        courier.wake()

    tracker = SpoolTracker(spool, wake)
    tracker.set_tags({"a": "b"})
    courier.start(20.0)
    (tmp_path / "model").mkdir()
    tracker.log_model(ModelRecord(tmp_path / "model", np.zeros((2, 8, 8, 1), np.uint8), ("0", "1"), {}))
    wait_until(spool.is_delivered, "the model waits")
    assert courier.flush()


def test_a_spool_that_a_process_works_on_is_left_alone(uri: str, tmp_path: Path) -> None:
    tracker = _begin(tmp_path / "spools" / "key.1", uri)
    tracker.set_tags({"a": "b"})
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with spool_lock(tmp_path / "spools" / "key.1") as alone:
            assert alone
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(20)
    assert deliver_others(tmp_path / "spools") == []
    leave.set()
    thread.join()
    assert deliver_others(tmp_path / "spools") == ["key.1"]


def test_an_entry_that_mlflow_refuses_is_set_aside_and_what_is_behind_it_arrives(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = _begin(tmp_path / "spool", uri)
    tracker.log_metrics([Metric("loss", 1.0, 0, 1)])
    tracker.set_tags({"": "a tag without a name"})
    tracker.log_metrics([Metric("loss", 0.5, 1, 2)])
    tracker.finish("FINISHED")
    assert _drain(tracker.spool, patience=5)
    run_id = tracker.spool.sent.run_id
    assert _history(uri, run_id) == [(0, 1.0), (1, 0.5)]
    assert open_client(uri).get_run(run_id).info.status == "FINISHED"
    (line,) = tracker.spool.refused.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["values"] == {"": "a tag without a name"}
    assert "MLflow refused an entry (tags)" in caplog.text
    assert "unreachable" not in caplog.text


def test_a_run_of_a_deleted_experiment_says_so_at_once_and_is_sent_when_it_is_restored(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    client, folder = open_client(uri), tmp_path / "spools" / "key.1"
    deleted = client.create_experiment("gone")
    client.delete_experiment(deleted)
    line = (
        "tracking.experiment: expected an experiment that exists, got gone, which was deleted in MLflow; "
        f"run `mlflow experiments restore -x {deleted}`, or name another; "
    )
    started = time.monotonic()
    with tracked_run(folder, uri, "gone", params={"a": 1}, tags={}, wait_seconds=60) as tracked:
        wait_until(lambda: f"{line}training continues" in caplog.text, "the cause is not said")
    assert time.monotonic() - started < delivery.PATIENCE / 2
    assert not tracked.delivered
    output = capsys.readouterr().out
    assert output.startswith(f"{line}the history of this run waits on disk")
    assert "unreachable" not in output
    for number in range(8):  # of a search
        trial = _begin(tmp_path / "spools" / f"key.1{number}", uri, "gone")
        trial.set_tags({"a": "b"})
        trial.spool.close()
    later = _begin(tmp_path / "spools" / "key.2", uri)
    later.set_tags({"a": "b"})
    later.spool.close()
    started = time.monotonic()
    assert deliver_others(tmp_path / "spools") == ["key.2"], "it does not wait for the first one"
    assert time.monotonic() - started < 4 * delivery.USER_PATIENCE, "the others of the same experiment are not tried"
    client.restore_experiment(deleted)
    assert deliver_others(tmp_path / "spools") == ["key.1", *(f"key.1{number}" for number in range(8))]
    assert {run.data.params.get("a") for run in client.search_runs([deleted])} == {"1", None}


def test_a_killed_run_has_its_whole_history_before_another_takes_it_over(uri: str, tmp_path: Path) -> None:
    client = open_client(uri)
    first, second = (client.create_run("0").info.run_id for _ in range(2))
    told = {"params": {}, "tags": {}}
    with tracked_run(tmp_path / "spool", uri, "Default", given=first, **told) as telling:
        telling.tracker.log_metrics([Metric("loss", 1.0, 0, 1)])
    spool = Spool(tmp_path / "spool")
    SpoolTracker(spool).log_metrics([Metric("loss", 0.5, 1, 2)])  # a kill came before this was sent
    spool.close()
    with tracked_run(tmp_path / "spool", uri, "Default", given=second, **told) as telling:
        telling.tracker.log_metrics([Metric("loss", 0.25, 2, 3)])
    assert _history(uri, first) == [(0, 1.0), (1, 0.5)]
    assert _history(uri, second) == [(0, 1.0), (1, 0.5), (2, 0.25)]
    assert [client.get_run(run).info.status for run in (first, second)] == ["KILLED", "FINISHED"]


def test_histories_of_trainings_that_may_be_resumed_stay_however_many_runs_end(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    project = ProjectPaths(tmp_path)
    for number in range(KEPT_SPOOLS + 1):
        spool = Spool(project.spools / f"stopped{number}.1")
        SpoolTracker(spool).finish("KILLED")
        spool.sent = Sent("run", spool.path.stat().st_size)
        spool.close()
    begin_stage(project.attempts, "other", "evaluate")
    inputs = StageInputs(tmp_path, "evaluate", {}, {})
    stage = Stage("evaluate", StagePaths(tmp_path), project, parse_params({}), "other", Signals(), inputs)
    with stage_run(stage, "spooled") as tracker:
        tracker.set_tags({"a": "b"})
    assert {path.name for path in delivered_spools(project.spools)} == {
        "other.1",
        *(f"stopped{number}.1" for number in range(KEPT_SPOOLS + 1)),
    }
