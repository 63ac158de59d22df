"""`mlflow models serve` as the README shows it: right answers, names of classes, and numbers that are no pixels refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import mlflow
import numpy as np
import pytest
import requests
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.export.passes import move_to_device_pass

from bigstep.config.model import ModelConfig
from bigstep.diagnostics.verify import find_damage
from bigstep.models.building import InputShape
from bigstep.models.classifier import NO_PIXELS, CheckedClassifier, ServedClassifier
from bigstep.models.model_files import build_classifier
from bigstep.project.parameters import check_params
from bigstep.tracking.exporting import export_module
from bigstep.tracking.mlflow_tracker import open_run
from bigstep.tracking.model_code import CODE_FILE
from bigstep.tracking.model_registry import promote
from bigstep.tracking.tracker import ModelRecord
from conftest import random_images
from dvc_dependencies import ROOT
from serving import unused_port, wait_for_port

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")]  # MLflow's own

CLASSES = ("cat", "dog", "owl")
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Serving the model\n")[2].partition("\n## ")[0]
EXPORT, SERVE, WRITE, CURL = re.findall(r"^\$ ((?:.*\\\n)*.*)$", SECTION, re.MULTILINE)
PIXELS = random_images(3, 16, 1)[:, :12, :9].copy()


@dataclass(frozen=True)
class Server:
    """A served model, and the module it was exported from."""

    root: Path
    port: int
    module: ServedClassifier

    @property
    def files(self) -> Path:
        """Folder of the model."""
        return next((self.root / "mlruns").rglob("MLmodel")).parent

    def run(self, line: str) -> str:
        """Run a line of the README where the model is."""
        return subprocess.run(**_shell(self.root, self.port, line), text=True, capture_output=True, check=True).stdout

    def post(self, inputs: object, key: str = "inputs") -> requests.Response:
        """Send anything that JSON can say."""
        body = json.dumps({key: inputs})
        headers = {"Content-Type": "application/json"}
        return requests.post(f"http://127.0.0.1:{self.port}/invocations", body, headers=headers, timeout=60)

    def check(self, answer: str, images: NDArray[np.uint8]) -> None:
        """Compare an answer with what the module itself says, name by name."""
        rows = json.loads(answer)["predictions"]
        with torch.no_grad():
            expected = self.module(torch.from_numpy(images.copy())).numpy()
        assert [tuple(row) for row in rows] == [CLASSES] * len(images)
        np.testing.assert_allclose([list(row.values()) for row in rows], expected, atol=1e-5)


def _shell(root: Path, port: int, line: str) -> dict[str, object]:
    command = f"{EXPORT}\n{line.replace('5001', str(port))}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        "args": ["bash", "-ec", command],
        "cwd": root,
        "env": {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": "", "MLFLOW_DISABLE_TELEMETRY": "true"},
    }


def _register(root: Path) -> ServedClassifier:
    torch.manual_seed(0)
    tracker = open_run(f"sqlite:///{root / 'mlflow.db'}", run_id=None, experiment="models")
    module = ServedClassifier(build_classifier(ModelConfig(width=4), InputShape(1, 8, 3), mean=(0.3,), std=(0.4,)), 8).eval()
    tags = {"bigstep.weights_sha256": "w", "bigstep.validation_digest": "d", "bigstep.val_loss": "0.5"}
    tracker.log_program(ModelRecord(root, PIXELS[:2], CLASSES, tags), export_module(module, PIXELS[:2], root))
    assert promote(tracker.client, tracker.run_id, "bigstep-digits", metric="val_loss", smaller_is_better=True)
    return module


@pytest.fixture(scope="module")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("served")
    shutil.copyfile(empty_database, root / "mlflow.db")
    module, port = _register(root), unused_port()
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(**_shell(root, port, SERVE), stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for_port(port)
            yield Server(root, port, module)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def test_the_readmes_lines_answer_and_name_the_classes(server: Server) -> None:
    Image.fromarray(PIXELS[0, :, :, 0]).save(server.root / "digit.png")
    server.run(WRITE)
    server.check(server.run(CURL), PIXELS[:1])


def test_whole_numbers_answer_whether_written_as_integers_or_not(server: Server) -> None:
    for inputs in (PIXELS.tolist(), PIXELS.astype(float).tolist()):
        server.check(server.post(inputs).text, PIXELS)
    server.check(server.post(PIXELS.tolist(), "instances").text, PIXELS)
    dark = np.zeros((1, 8, 8, 1), np.uint8)
    server.check(server.post(dark.tolist()).text, dark)


def test_the_server_needs_no_bigstep_and_no_pickle(server: Server) -> None:
    code = (
        "import sys; sys.modules['bigstep'] = None; import mlflow, numpy; model = mlflow.pyfunc.load_model(sys.argv[1]);"
        "print(type(mlflow.pytorch.load_model(sys.argv[1])).__name__, *model.predict(numpy.full((1, 8, 8, 1), 9, 'f')).columns)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(server.files)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["GraphModule", *CLASSES], done.stderr
    assert not list(server.files.rglob("*.pkl"))


def test_a_served_model_is_as_it_was_logged_and_has_no_path_of_this_machine(server: Server) -> None:
    """MLflow notes the version beside the files, and Python would keep bytecode there."""
    assert (server.files / "registered_model_meta").is_file()
    assert not list(find_damage(server.root, check_params({})))
    assert (server.files / CODE_FILE.name).read_bytes() == CODE_FILE.read_bytes()
    store = (server.files / "MLmodel").read_text(encoding="utf-8").splitlines()[0]
    assert store.startswith("artifact_path: ")  # of the store, by MLflow
    for path in server.files.glob("*.*"):
        content = path.read_bytes().replace(store.encode(), b"")
        for place in (ROOT, CODE_FILE.parent, server.root, tempfile.gettempdir(), sys.prefix):
            assert str(place).encode() not in content, path


@final
class _Named(nn.Module):
    def forward(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"cat": numbers[:, 0], "dog": numbers[:, 1]}


def test_mlflow_still_refuses_an_exported_program_that_names_its_outputs(tmp_path: Path) -> None:
    """Decision 22: should this fail, answers can have names without code."""
    example = np.zeros((2, 2), np.float32)
    signature = ModelSignature(inputs=Schema([TensorSpec(example.dtype, (-1, 2))]))
    given = {"signature": signature, "input_example": example, "serialization_format": "pt2", "pip_requirements": ["torch"]}
    mlflow.pytorch.save_model(_Named(), tmp_path / "model", **given)
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    with pytest.raises(TypeError, match="single output tensor, but got output of type '<class 'dict'>'"):
        loaded.predict(example)


@pytest.mark.parametrize(
    "inputs",
    [
        PIXELS / 255,
        PIXELS / 255 / 1e6,
        (PIXELS > 127).astype(float),
        PIXELS > 127,
        PIXELS + 0.5,
        PIXELS - 128.0,
        PIXELS * 2.0,
        np.full((1, 8, 8, 1), np.nan),
        np.full((1, 8, 8, 1), np.inf),
        np.full((1, 8, 8, 1), None),
    ],
    ids=["shares", "tiny", "zero-or-one", "booleans", "fractions", "negative", "above", "nan", "infinity", "null"],
)
def test_numbers_that_are_no_pixels_are_refused_by_name_and_the_server_lives(
    server: Server, inputs: NDArray[np.generic]
) -> None:
    refused = server.post(inputs.tolist())
    assert refused.status_code == 400
    assert refused.json()["stack_trace"].strip().endswith(NO_PIXELS)
    assert server.post(PIXELS.tolist()).status_code == 200


def test_the_exported_program_asserts_on_the_host_even_when_it_is_moved_to_a_gpu() -> None:
    served = ServedClassifier(build_classifier(ModelConfig(width=4), InputShape(1, 8, 3), mean=(0.3,), std=(0.4,)), 8).eval()
    shapes = [dict.fromkeys(range(3), torch.export.Dim.AUTO)]
    exported = torch.export.export(CheckedClassifier(served).eval(), (torch.zeros(2, 12, 9, 1),), dynamic_shapes=shapes)
    with pytest.raises(RuntimeError, match=NO_PIXELS):
        exported.module()(torch.from_numpy(PIXELS / 255).float())
    # the meta device stands in for a GPU: what the program notes of devices moves with it, and the rest stays on the host
    nodes = list(move_to_device_pass(exported, "meta").graph.nodes)
    (asserted,) = (node for node in nodes if node.target is torch.ops.aten._assert_async.msg)
    assert "device" not in asserted.args[0].kwargs
    assert any(node.kwargs.get("device") == "meta" for node in nodes)
