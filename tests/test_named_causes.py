"""What a user sees of an own model that breaks a promise: the cause, with file and line of the code, in train and check."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from bigstep.commands.check import check
from bigstep.config.params import read_params
from bigstep.errors import UserError
from bigstep.project.parameters import check_params
from bigstep.project.paths import ProjectPaths, StagePaths
from bigstep.stages.prepare import prepare
from bigstep.stages.stage_runner import run_stage
from bigstep.stages.train import train as train_stage
from bigstep.user_places import user_code_line
from dvc_dependencies import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's own

NETWORK = """\
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, channels):
        super().__init__()
        self.convolution = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images):
        features = self.norm(self.convolution(images))
        {line}
        return self.head(features.mean(dim=(2, 3)))


def build(num_classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, num_classes))


def contrast(outputs, targets):
    return F.cross_entropy(outputs - outputs.mean(dim=0), targets, reduction="none")
"""
BATCH = {"norm": "batch", "ghost_batch_size": 16}
REPLACED = "model.norm group: BatchNorm in norm (custom/model/net.py:6) was replaced by GroupNorm"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A project with the digits prepared."""
    root = tmp_path_factory.mktemp("project")
    (root / "custom" / "model").mkdir(parents=True)
    (root / "params.yaml").write_text("data: {}\n", encoding="utf-8")
    shutil.copyfile(ROOT / "dvc.yaml", root / "dvc.yaml")
    shutil.copyfile(empty_database, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert run_stage("prepare", prepare) == 0
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "model", "train", "code", "expected"),
    [
        ("pass", BATCH, {}, 0, "not slice-invariant: BatchNorm2d in network.norm (custom/model/net.py:6) normalises each"),
        ("pass", {"name": "build", **BATCH}, {}, 0, "BatchNorm2d in network.1 (custom/model/net.py:19) normalises each"),
        ("pass", {}, {"loss": "custom/model/net.py:contrast"}, 0, "loss (custom/model/net.py:23): expected a sum over samples"),
        ("features = features - features.mean(dim=0)", {}, {}, 0, "model (custom/model/net.py:6): expected layers"),
        (
            "features *= torch.empty_like(features).geometric_(0.5)",
            {},
            {},
            2,
            "model (custom/model/net.py:15): expected random",
        ),
        ("features = features.view(3, -1, 5)", {}, {}, 2, "custom/model/net.py:15: RuntimeError: shape '[3, -1, 5]' is"),
    ],
    ids=["norm", "norm-of-a-function", "loss", "features", "random", "exception"],
)
def test_what_breaks_a_promise_is_named_with_its_file_and_line(
    project: Path,
    line: str,
    model: dict[str, object],
    train: dict[str, object],
    code: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "1000")
    sys.modules.pop("custom.model.net", None)
    (project / "custom" / "model" / "net.py").write_text(NETWORK.format(line=line), encoding="utf-8")
    content = {
        "model": {**model, "name": f"custom/model/net.py:{model.get('name', 'Net')}"},
        "train": {"epochs": 1, "effective_batch_size": 64, **train},
        "hardware": {"micro_batch_size": 16},
        "tracking": {"noise_scale": "none"},
    }
    (project / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    assert run_stage("train", train_stage) == code
    seen = capsys.readouterr()
    said = " ".join((seen.out + seen.err).split())
    assert expected in said
    assert "Traceback" not in said
    assert (REPLACED in said) == (code == 0 and not model)
    parsed = check_params(read_params(project / "params.yaml"))
    try:
        assert check(ProjectPaths(project), StagePaths(project), parsed, 8) == 1
        checked = capsys.readouterr().out
    except UserError as error:
        checked = str(error)
    except Exception as error:  # noqa: BLE001 # as the command line does
        checked = user_code_line(error) or ""
    assert expected.removeprefix("not slice-invariant: ") in " ".join(checked.split())
