"""Every example, as its README says, and then hurt: `make examples` runs this file (minutes each).

The pipeline from `bigstep init` to the metrics; the same bytes after a kill -9 in the middle of training; a search of five
trials with options of the network; and a served model that answers with a number for each of its names.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests

from bigstep.runtime.local_port import free_port
from conftest import read_rows
from faults.project import Project, kill_group
from run_examples import EXAMPLES, make_example, run_example
from serving import wait_for_port

pytestmark = [pytest.mark.filterwarnings("ignore")]
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/params.yaml"))
SEARCH_SECONDS = 1800  # that a search may take on a busy machine
INTERVAL = "hardware.checkpoint_interval=0.2s"
FILES = ("results/train/model.safetensors", "results/train/history.csv", "results/evaluate/predictions.csv")


@pytest.fixture(scope="module", params=NAMES)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The example's project, after its pipeline has run."""
    made = run_example(request.param, tmp_path_factory.mktemp("examples"), INTERVAL)
    return Project(made)


def test_killed_in_the_middle_it_ends_in_the_same_bytes(project: Project, tmp_path: Path) -> None:
    rows = len(read_rows(project.root / "results" / "train" / "history.csv"))
    other = Project(make_example(project.root.name, tmp_path, INTERVAL))
    process = other.start("dvc", "repro")
    other.until(process, lambda line: f"epoch {max(1, rows // 2)}/{rows}" in line)
    kill_group(process)
    assert "resuming from the checkpoint" in other.run("dvc", "repro")
    for name in FILES:
        assert (other.root / name).read_bytes() == (project.root / name).read_bytes()


def test_a_search_of_five_trials_finds_options_of_the_network(project: Project) -> None:
    quick = ("--set", "search.confirm_top=1", "--set", "search.confirm_seeds=1")
    output = project.run("bigstep", "search", "--trials", "5", "--workers", "1", *quick, timeout=SEARCH_SECONDS)
    assert "winner: trial" in output
    rows = read_rows(project.root / "results" / "search" / "trials.csv")
    assert len(rows) == 5
    options = [name for name in rows[0] if name.startswith(("model.options.", "model.width"))]
    assert options
    assert all(len({row[name] for row in rows}) > 1 for name in options)


def test_the_served_model_answers_with_a_number_for_each_name(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the registered model's own example looks like."""
    import mlflow

    uri = f"sqlite:///{project.root / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # MLflow sets it: the next example must not find it
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri, uri)  # the registry of another example's store would stay
    (name,) = [model.name for model in client.search_registered_models()]
    version = client.get_model_version_by_alias(name, "champion")
    info = mlflow.models.get_model_info(f"models:/{name}/{version.version}")
    spec = info.signature.inputs.inputs[0]
    shape = [2 if size == -1 and axis == 0 else (40 if size == -1 else size) for axis, size in enumerate(spec.shape)]
    rows = np.random.default_rng(0).integers(2, 9, shape).astype(spec.type)
    port = free_port(5400)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{name}@champion", "--env-manager", "local"]
    environment = project.environment(MLFLOW_TRACKING_URI=uri)
    server = subprocess.Popen([*command, "-p", str(port)], cwd=tmp_path, env=environment, start_new_session=True)
    try:
        wait_for_port(port)
        body = json.dumps({"inputs": rows.tolist()})
        answer = requests.post(
            f"http://127.0.0.1:{port}/invocations", body, headers={"Content-Type": "application/json"}, timeout=60
        )
        assert answer.ok, answer.text
        found = answer.json()["predictions"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)
    names = (info.metadata or {})["classes"]
    assert info.signature.outputs.input_names() == names
    assert [list(row) for row in found] == [names] * 2
    assert np.isfinite([list(row.values()) for row in found]).all()
