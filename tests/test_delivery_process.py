"""A process that delivers a run's spool: it does what the thread does, ends with its run, and is not needed for anything."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
import torch

from bigstep.config.model import ModelConfig
from bigstep.config.params import parse_params
from bigstep.models.building import InputShape
from bigstep.models.classifier import ServedClassifier
from bigstep.models.model_files import build_classifier
from bigstep.runs.tracked_run import tracked_run
from bigstep.runtime.device import has_spare_core
from bigstep.tracking.database import open_client
from bigstep.tracking.delivery_process import DeliveryProcess, ProcessDelivery
from bigstep.tracking.exporting import export_module
from bigstep.tracking.mlflow_tracker import MODEL_URI_TAG
from bigstep.tracking.tracker import Metric, ModelRecord
from waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeliveryProcess]:
    (tmp_path / "sitecustomize.py").write_text("print('welcome')\nprint(1)\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = DeliveryProcess(expects_model=False)
    yield process
    process.close()


def _couriers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "bigstep.tracking.courier" in child.cmdline()]


def _losses(uri: str, run_id: str | None) -> list[float]:
    assert run_id is not None
    return [item.value for item in open_client(uri).get_metric_history(run_id, "loss")]


def test_a_run_is_delivered_while_it_lasts_and_what_was_refused_is_said_here(
    uri: str, tmp_path: Path, process: DeliveryProcess, caplog: pytest.LogCaptureFixture
) -> None:
    told = {"params": {"a": 1}, "tags": {}, "delivery": partial(ProcessDelivery, process=process)}
    with caplog.at_level(logging.INFO, "bigstep"), tracked_run(tmp_path / "spool", uri, "Default", **told) as tracked:
        tracked.tracker.log_metrics([Metric("loss", 1.0, 0, 10)])
        wait_until(lambda: tracked.run_id() and _losses(uri, tracked.run_id()) == [1.0], "nothing was delivered")
        for number in (signal.SIGINT, signal.SIGTERM):  # as a group gets them
            (courier,) = _couriers()
            courier.send_signal(number)
        tracked.tracker.set_tags({"": "a tag without a name"})
        tracked.tracker.log_metrics([Metric("loss", 0.5, 1, 20)])
        tracked.tracker.promote("model", "0" * 64)  # which a thread of this process would send at the end
        wait_until(tracked.tracker.spool.is_delivered, "something waits for the end")
        ProcessDelivery(tracked.tracker.spool, process).wake()
    assert tracked.delivered
    assert _losses(uri, tracked.run_id()) == [1.0, 0.5]
    assert open_client(uri).get_run(tracked.run_id()).info.status == "FINISHED"
    assert "MLflow refused an entry (tags)" in caplog.text
    process.close()
    assert not _couriers()


def test_a_killed_process_is_not_needed(uri: str, tmp_path: Path, process: DeliveryProcess) -> None:
    told = {"params": {"a": 1}, "tags": {}, "delivery": partial(ProcessDelivery, process=process)}
    with tracked_run(tmp_path / "spool", uri, "Default", **told) as tracked:
        tracked.tracker.log_metrics([Metric("loss", 1.0, 0, 10)])
        for courier in _couriers():
            courier.kill()
        tracked.tracker.log_metrics([Metric("loss", 0.5, 1, 20)])
    assert tracked.delivered
    assert _losses(uri, tracked.run_id()) == [1.0, 0.5]


@pytest.mark.parametrize("early", [True, False])
def test_what_an_export_needs_is_imported_early_only_where_a_core_is_free(early: bool, uri: str, tmp_path: Path) -> None:
    process = DeliveryProcess(expects_model=True)
    delivery = partial(ProcessDelivery, process=process, imports_early=early)
    told = {"params": {"a": 1}, "tags": {}, "delivery": delivery}
    with tracked_run(tmp_path / "spool", uri, "Default", **told) as tracked:
        tracked.tracker.log_metrics([Metric("loss", 1.0, 0, 10)])
        wait_until(lambda: tracked.run_id() and _losses(uri, tracked.run_id()) == [1.0], "nothing was delivered")
        if early:
            wait_until(_has_torch, "torch was not imported", seconds=60)
        else:
            tracked.tracker.log_metrics([Metric("loss", 0.5, 1, 20)])
            wait_until(lambda: _losses(uri, tracked.run_id()) == [1.0, 0.5], "nothing was delivered")
            assert not _has_torch()
    process.close()
    assert tracked.delivered


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's own
def test_a_model_that_was_exported_before_is_logged_without_torch(uri: str, tmp_path: Path) -> None:
    classifier = build_classifier(ModelConfig(width=4), InputShape(1, 8, 3), mean=(0.3,), std=(0.4,))
    module, pixels = ServedClassifier(classifier, 8).eval(), np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1)
    program = export_module(module, pixels, tmp_path)
    (tmp_path / "model").mkdir()
    record = ModelRecord(tmp_path / "model", pixels, ("a", "b", "c"), {"bigstep.weights_sha256": "w"}, program)
    process = DeliveryProcess(expects_model=True)
    told = {"params": {"a": 1}, "tags": {}, "delivery": partial(ProcessDelivery, process=process)}
    with tracked_run(tmp_path / "spool", uri, "Default", **told) as tracked:
        tracked.tracker.log_model(record)
        program.path.unlink()
        wait_until(lambda: tracked.run_id() and MODEL_URI_TAG in _tags(uri, tracked.run_id()), "no model was logged")
        assert not _has_torch()
    process.close()
    source = _tags(uri, tracked.run_id())[MODEL_URI_TAG]
    mlflow.set_tracking_uri(uri)
    answers = mlflow.pyfunc.load_model(source).predict(pixels.astype(np.float32))
    assert list(answers.columns) == ["a", "b", "c"]
    np.testing.assert_allclose(answers.to_numpy(), module(torch.from_numpy(pixels)).detach().numpy(), rtol=1e-6)


def _tags(uri: str, run_id: str | None) -> dict[str, str]:
    assert run_id is not None
    return dict(open_client(uri).get_run(run_id).data.tags)


def _has_torch() -> bool:
    (courier,) = _couriers()
    return any("libtorch" in Path(item.path).name for item in courier.memory_maps())


@pytest.mark.parametrize(("threads", "processes", "cores", "is_spare"), [(1, 1, 2, True), (2, 1, 2, False), (1, 2, 2, False)])
def test_a_core_is_spare_where_the_training_leaves_one(
    threads: int, processes: int, cores: int, is_spare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cores))
    monkeypatch.setattr("psutil.cpu_count", lambda **_: 64)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    params = parse_params({"hardware": {"processes": processes, "device": "cpu"}})
    assert has_spare_core(params) is is_spare
    monkeypatch.setattr("psutil.cpu_count", lambda **_: 1)
    assert not has_spare_core(params), "two threads of one core"


def test_it_ends_with_the_process_that_it_delivers_for() -> None:
    code = """
import psutil
from bigstep.tracking.delivery_process import DeliveryProcess
process = DeliveryProcess(expects_model=True)
print(*[child.pid for child in psutil.Process().children()], flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        number = int(started.stdout.readline())
        os.kill(started.pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(number), "the process lives", seconds=10)
