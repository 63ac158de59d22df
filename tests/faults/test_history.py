"""Rows 11, 35 and those of the history: MLflow gone, locked, full or slow; promotion; two starts; open doors."""

import http.server
import os
import signal
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from bigstep.commands.mlflow_ui import mlflow_command
from faults.project import EndState, Project
from serving import unused_port, wait_for_port

pytestmark = pytest.mark.slow


@pytest.mark.fault(11, "disk full under MLflow's database", rounds=3, rare=True)
def test_a_full_disk_under_the_history_stops_no_training(round_number: int, project: Project, undisturbed: EndState) -> None:
    del round_number
    size = (project.root / "mlflow.db").stat().st_size // 1024 + 8
    output = project.run("bash", "-c", f"ulimit -f {max(size, 2000)}; ulimit -f {size}; python pipelines/train.py", code=None)
    assert "MLflow is unreachable" in output, output[-2000:]
    assert (project.root / "results/train/model.safetensors").exists()
    connection = sqlite3.connect(project.root / "mlflow.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert "sent 1" in project.bigstep("doctor", "--fix", code=None)
    assert project.history(project.runs()[-1].info.run_id) == undisturbed.metrics


@pytest.mark.fault("27", "MLflow's database locked for 15 s", rounds=3, rare=True)
def test_a_locked_history_holds_nothing_up(round_number: int, project: Project, undisturbed: EndState) -> None:
    del round_number
    process = project.start("dvc", "repro", "train")
    project.until(process, lambda line: line.startswith("small_cnn"))
    connection = sqlite3.connect(project.root / "mlflow.db", timeout=30)
    connection.execute("BEGIN EXCLUSIVE")
    unlock = time.monotonic() + 15
    project.until(process, lambda line: line.startswith("trained in"))  # it has not waited for the database
    time.sleep(max(0.0, unlock - time.monotonic()))
    connection.rollback()
    connection.close()
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert project.end_state() == undisturbed


class _Hanging(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(60)

    do_POST = do_GET  # noqa: N815 # the name that http.server calls


@pytest.fixture
def hanging() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hanging)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.long
@pytest.mark.fault("28", "the MLflow server down, or not answering", rounds=4)
def test_a_server_that_is_gone_stops_no_training(
    round_number: int, project: Project, undisturbed: EndState, hanging: str
) -> None:
    uri = hanging if round_number % 2 else "http://127.0.0.1:9"
    process = project.start("dvc", "repro", "train", MLFLOW_TRACKING_URI=uri)
    lines = project.until(process, lambda line: line.startswith("trained in"))
    seconds = float(lines[-1].split()[2])
    assert seconds < 15
    rest, _ = process.communicate(timeout=200)
    assert process.returncode == 0, rest
    assert "waits on disk" in "".join(lines) + rest
    assert project.run("dvc", "repro", "train", MLFLOW_TRACKING_URI=uri).count("up to date") == 1
    (origin,) = (project.root / ".bigstep/spools").glob("*/origin.json")
    text = origin.read_text(encoding="utf-8").replace(uri, f"sqlite:///{project.root / 'mlflow.db'}")
    origin.write_text(text, encoding="utf-8")
    assert "sent 1" in project.bigstep("doctor", "--fix", code=None)
    assert project.history(project.runs()[-1].info.run_id) == undisturbed.metrics


@pytest.mark.fault("44", "SIGKILL while a model is promoted to champion", rounds=6, rare=True)
def test_promotion_happens_once(round_number: int, project: Project) -> None:
    import mlflow

    project.run("dvc", "repro", "-q", "train")
    project.strike("os.rename", r"\.sent\.json\..*tmp", 3 + round_number, command=("dvc", "repro"))
    project.finish()
    client = mlflow.MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    (version,) = client.search_model_versions("name='bigstep-digits'")
    assert client.get_model_version_by_alias("bigstep-digits", "champion").version == version.version
    assert [run.info.status for run in project.runs()] == ["FINISHED"]


@pytest.mark.fault("45", "the same training started twice", rounds=3, rare=True)
def test_a_second_start_waits_and_says_so(round_number: int, project: Project) -> None:
    project.set("train.epochs=400", f"train.seed={round_number}")
    first = project.start("python", "pipelines/train.py")
    project.until(first, lambda line: line.startswith("epoch 1/"))
    second = project.run("python", "pipelines/train.py", code=2)
    assert "one process at a time" in second
    first.terminate()
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 143, output


@pytest.mark.fault("46", "SIGKILL while `bigstep plan` measures", rounds=3, rare=True)
def test_a_killed_plan_leaves_no_half_plan(round_number: int, project: Project) -> None:
    del round_number
    command = ("python", "pipelines/plan.py", "--seconds", "5")
    project.strike("os.rename", r"\.plan\.json\..*tmp", command=command)
    assert not list((project.root / ".bigstep/plans").rglob("plan.json"))
    assert "effective batch" in project.run(*command)
    assert list((project.root / ".bigstep/plans").rglob("plan.json"))


@pytest.mark.fault(35, "foreign Host and Origin headers to MLflow's page", rounds=2)
def test_a_page_elsewhere_reaches_no_history(round_number: int, project: Project) -> None:
    port = unused_port()
    command = mlflow_command(f"sqlite:///{project.root / 'mlflow.db'}", "127.0.0.1", port)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    server = subprocess.Popen(command, cwd=project.root, env=environment, **silent)
    try:
        wait_for_port(port)
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
        assert _status(address) == 200
        assert _status(address, Host="evil.com") == 403
        assert _status(address, Host="192.168.1.7") == 403
        if round_number:
            create = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/create"
            assert _status(create, b'{"name": "x"}', Origin="http://evil.com") == 403
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # as Ctrl-C does: server and workers are told
        server.wait(30)


def _status(address: str, data: bytes | None = None, **headers: str) -> int:
    request = urllib.request.Request(address, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
