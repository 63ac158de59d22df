"""Samples that are no images: rows of numbers and of tokens, from a data set of the project's own to the served model."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bigstep.commands.predict import predict
from bigstep.config.data import DataConfig
from bigstep.config.params import Params, parse_params
from bigstep.data.arrays import measure_arrays
from bigstep.data.mapped_array import MappedArray
from bigstep.data.sources import open_source
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.data.store_writer import prepare_store
from bigstep.ensembles.registered import PROGRAM, network_tensors
from bigstep.errors import ConfigError, DataError, UserError
from bigstep.models.building import InputShape
from bigstep.planning.measure import MeasuredData, MeasurementRequest
from bigstep.planning.measure_worker import build_measured_training
from bigstep.planning.memory_budget import predict as predict_bytes
from bigstep.planning.work import forward_operations
from bigstep.project.paths import ProjectPaths
from bigstep.stages.evaluate import evaluate
from bigstep.stages.prepare import prepare
from bigstep.stages.stage_runner import run_stage
from bigstep.stages.train import train as train_stage
from bigstep.tasks.targets import targets_of
from bigstep.tracking.database import open_client
from bigstep.tracking.model_registry import find_version
from bigstep.tracking.sealing import checked_copy
from bigstep.training.loop import train_epochs
from bigstep.training.setup import build_training
from bigstep.training.state import TrainingState
from bigstep.training.training_batches import TrainingBatches
from dvc_dependencies import ROOT
from targets import BASE

KINDS = ("vectors", "tokens", "series")
DATASET = f"""{BASE}

class Vectors(Base):
    classes = ["low", "high"]

    def __getitem__(self, index):
        row = np.random.default_rng(index).normal([100, 0, -3], [10, 1, 0.1]).astype(np.float32)
        return row, int(row[0] > 100)


class Tokens(Base):
    classes = ["few", "many"]

    def __getitem__(self, index):
        row = np.random.default_rng(index).integers(0, 12, 6)
        return row, "many" if (row == 3).sum() else "few"


class Series(Base):
    inputs = "arrays"
    targets = ["sum"]

    def __getitem__(self, index):
        rows = np.random.default_rng(index).normal(5, 2, (2, 5))
        return rows, rows.sum()
"""
NETWORKS = """
import math

from torch import nn


class Vectors(nn.Module):
    def __init__(self, input_shape, num_outputs, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), width))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, num_outputs))

    def forward(self, rows):
        return self.head(self.layers(rows))


class Tokens(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, tokens):
        return self.head(self.embedding(tokens).mean(dim=1))


class Images(nn.Module):
    def __init__(self, num_classes, channels):
        super().__init__()
"""
SOURCES = {
    "vectors": "custom/data/rows.py:Vectors",
    "tokens": "custom/data/rows.py:Tokens",
    "series": "custom/data/rows.py:Series",
}
MODELS = {
    "vectors": "custom/model/net.py:Vectors",
    "tokens": "custom/model/net.py:Tokens",
    "series": "custom/model/net.py:Vectors",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A project with data sets of arrays, and networks for them."""
    root = tmp_path_factory.mktemp("project")
    for name, text in (("data/rows", DATASET), ("model/net", NETWORKS)):
        path = root / "custom" / f"{name}.py"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    (root / "params.yaml").write_text("data: {}\n", encoding="utf-8")
    shutil.copyfile(ROOT / "dvc.yaml", root / "dvc.yaml")
    shutil.copyfile(empty_database, root / "mlflow.db")
    return root


@pytest.fixture
def store(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Store]:
    """Prepare a data set."""
    monkeypatch.chdir(project)

    def make(kind: str, **data: Any) -> Store:
        section, folder = DataConfig(source=SOURCES[kind], **data), tmp_path / kind
        folder.mkdir()
        for _ in prepare_store(open_source(section, tmp_path, num_workers=0), section, folder):
            pass
        return Store(folder)

    return make


def _params(kind: str, micro: int | None = 16, model: dict[str, Any] | None = None, **train: Any) -> Params:
    hardware = {"micro_batch_size": micro, "threads": 1, "memory_budget": "none"}
    values = {"epochs": 3, "effective_batch_size": 16, "warmup_fraction": 0.0, **train}
    return parse_params({"model": model or {"name": MODELS[kind]}, "hardware": hardware, "train": values})


def _trained(store: Store, params: Params) -> TrainingState:
    state = build_training(store, params.batch, params, weights=None)
    list(train_epochs(state, params.train, store, TrainingBatches(store, params.train, params.batch.effective_batch_size, 0)))
    return state


def _weights(state: TrainingState) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.classifier.parameters()])


def test_arrays_keep_their_shape_and_type(store: Callable[..., Store]) -> None:
    vectors, tokens, series = (store(kind) for kind in KINDS)
    assert (vectors.images.shape, vectors.images[3].dtype) == ((48, 3), np.dtype(np.float32))
    assert (tokens.images.shape, tokens.images[3].dtype) == ((48, 6), np.dtype(np.int64))
    assert (series.images.shape, series.images[3].dtype) == ((48, 2, 5), np.dtype(np.float64))
    expected = np.random.default_rng(3).normal([100, 0, -3], [10, 1, 0.1]).astype(np.float32)
    assert vectors.images[3].tobytes() == expected.tobytes()
    rows = vectors.images[vectors.indices(Split.TRAIN)].astype(np.float64)
    np.testing.assert_allclose(vectors.manifest.mean, rows.mean(axis=0), rtol=1e-8)
    np.testing.assert_allclose(vectors.manifest.std, rows.std(axis=0), rtol=1e-8)
    assert tokens.manifest.mean == ()
    assert len(series.manifest.mean) == 2
    for made in (vectors, tokens, series):
        made.verify()


def test_a_column_of_one_number_is_not_divided_by_its_rounding(tmp_path: Path) -> None:
    """The mean of 3,000 times 0.1 is not 0.1, and another number would become 7e15."""
    rows = np.stack([np.full(3000, 0.1), np.arange(3000.0)], axis=1)
    (tmp_path / "rows").write_bytes(rows.tobytes())
    mean, std = measure_arrays(MappedArray(tmp_path / "rows", rows.shape, None, dtype="float64"), np.arange(3000))
    assert mean[0] != 0.1
    assert std == (1.0, pytest.approx(rows[:, 1].std()))
    for count in range(1, 100):
        assert targets_of("regression", ["a"]).statistics(rows[:count, :1])[1] == (1.0,)


def test_a_changed_byte_of_an_array_is_noticed(store: Callable[..., Store]) -> None:
    made = store("vectors")
    content = bytearray(made.paths.images.read_bytes())
    content[100] ^= 1
    made.paths.images.write_bytes(content)
    with pytest.raises(DataError, match="expected what prepare wrote"):
        Store(made.paths.root).verify()


@pytest.mark.parametrize("kind", KINDS)
def test_float64_weights_are_those_of_one_pass_whatever_the_slicing(store: Callable[..., Store], kind: str) -> None:
    made = store(kind)
    found = [
        _trained(made, _params(kind, micro, precision="float64", effective_batch_size=64, augmentation="none"))
        for micro in (64, 7)
    ]
    assert (_weights(found[0]) - _weights(found[1])).abs().max() < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_memory_and_work_are_predicted_and_measured(store: Callable[..., Store], kind: str, tmp_path: Path) -> None:
    made, params = store(kind), _params(kind)
    assert predict_bytes(ProjectPaths(tmp_path), params, made, params.batch).peak_bytes > 0
    assert forward_operations(params.model, InputShape.of(made.manifest)) > 0
    sections = {name: getattr(params, name).model_dump(mode="json") for name in ("model", "train", "hardware", "tracking")}
    state = build_measured_training(MeasurementRequest(sections, MeasuredData.of(made), until=0.0), params.train)
    state.guard.close()


@pytest.mark.parametrize(
    ("kind", "model", "train", "expected"),
    [
        (
            "vectors",
            {"name": "small_cnn"},
            {},
            "model.name: expected a network of your own for samples of shape (3,), got small_cnn",
        ),
        ("vectors", {"name": "resnet18"}, {}, "model.name: expected a network of your own"),
        ("vectors", {"name": "custom/model/net.py:Images"}, {}, "missing a required argument: 'channels'"),
        (
            "vectors",
            None,
            {"augmentation": "flip"},
            "train.augmentation: expected none with samples that are no images, got flip",
        ),
        ("vectors", None, {"augmentation": ["RandomHorizontalFlip"]}, "train.augmentation: expected none"),
        ("vectors", None, {"cutmix_alpha": 0.3}, "train.cutmix_alpha: expected null with samples that are no images"),
        ("tokens", None, {"mixup_alpha": 0.3}, "train.mixup_alpha: expected null with samples of integers"),
    ],
)
def test_what_needs_images_is_refused(
    store: Callable[..., Store], kind: str, model: dict[str, Any] | None, train: dict[str, Any], expected: str
) -> None:
    params = _params(kind, model=model, **train)
    made = store(kind)
    with pytest.raises(UserError) as raised:
        build_training(made, params.batch, params, weights=None)
    assert expected in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_mixup_mixes_vectors(store: Callable[..., Store]) -> None:
    state = _trained(store("vectors"), _params("vectors", mixup_alpha=0.4))
    assert state.num_updates == state.step > 0


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"image_size": 16}, "data.image_size: expected null with samples that are no images, got 16"),
        ({"channels": 3}, "data.channels: expected null"),
        ({"pixel_statistics": "imagenet"}, "data.pixel_statistics: expected measured"),
    ],
)
def test_keys_of_images_are_refused(store: Callable[..., Store], keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        store("vectors", **keys)
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("return row[: 3 - index % 2], 0", "sample 1: an array: expected shape (3,) as that of sample 0, got (2,)"),
        ("return row.astype(object), 0", "sample 0: an array: expected numbers, got object"),
        ("return row / (index != 5), 0", "sample 5: an array: expected finite numbers"),
        ("return row * np.float64(1e300), 0", "sample 0: an array: expected finite numbers of at most 3.4e+38"),
        ("return row if index else row.astype(int), 0", "sample 1: an array: expected int64 as in sample 0, got float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_what_is_wrong_with_an_array_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, expected: str
) -> None:
    (tmp_path / "params.yaml").touch()
    (tmp_path / "custom" / "data").mkdir(parents=True)
    text = DATASET.replace("return row, int(row[0] > 100)", change)
    (tmp_path / "custom" / "data" / "rows.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    data = DataConfig(source=SOURCES["vectors"])
    with pytest.raises(DataError, match=r"custom/data/rows\.py:") as raised:
        list(prepare_store(open_source(data, tmp_path, num_workers=0), data, tmp_path / "store"))
    assert expected in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's own
@pytest.mark.parametrize("kind", ["tokens", "series"])
def test_the_whole_pipeline(
    project: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prepared, trained, evaluated and registered; `bigstep predict` answers for a file of NumPy."""
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    content = {
        "data": {"source": SOURCES[kind]},
        "model": {"name": MODELS[kind]},
        "train": {"epochs": 2, "effective_batch_size": 16},
    }
    (project / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    for name, body in (("prepare", prepare), ("train", train_stage), ("evaluate", evaluate)):
        assert run_stage(name, body) == 0, capsys.readouterr().err
    sample, wrong = project / "sample.npy", project / "wrong.npy"
    np.save(sample, Store(project / "data" / "prepared").images[5])
    np.save(wrong, np.zeros(2))
    unfit = Store(project / "data" / "prepared").images[5].astype(np.float64)
    unfit.flat[1] = 1.5 if kind == "tokens" else np.nan
    np.save(project / "unfit.npy", unfit)
    printed = capsys.readouterr().out
    assert "samples/s" in printed
    assert "image" not in printed
    answers, models = [], (str(project / "results" / "train"), f"bigstep-{SOURCES[kind].partition(':')[2]}")
    for model in models:
        assert predict(project, [sample], model) == 0
        answers.append(capsys.readouterr().out.split(":")[1].split())
    assert answers[0] == answers[1]
    client = open_client(f"sqlite:///{project / 'mlflow.db'}")
    with checked_copy(client, find_version(client, f"bigstep-{SOURCES[kind].partition(':')[2]}", "MODEL")) as copy:
        own = network_tensors(copy / PROGRAM)  # for an ensemble
    trained = load_file(project / "results" / "train" / "model.safetensors")
    assert own.keys() == trained.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in trained.items())
    _check_served(project, np.load(sample), model)
    assert predict(project, [wrong], str(project / "results" / "train")) == 2
    assert "expected an array of shape" in capsys.readouterr().err
    for model in models:
        assert predict(project, [project / "unfit.npy"], model) == 2
        assert re.search(r"expected (whole|finite) numbers that \w+ can hold, got (1\.5|nan);", capsys.readouterr().err)


def _check_served(project: Path, sample: Any, name: str) -> None:
    """As the server answers: by name, and rows of numbers also as a table (`dataframe_split`)."""
    import mlflow
    import pandas as pd

    client = open_client(f"sqlite:///{project / 'mlflow.db'}")
    model_id = client.get_model_version_by_alias(name, "champion").source.rpartition("/")[2]
    model = mlflow.pyfunc.load_model(client.get_logged_model(model_id).artifact_location)
    answer = model.predict(sample[None])
    assert list(answer.columns) == model.metadata.metadata["classes"]
    if sample.ndim == 1:
        pd.testing.assert_frame_equal(model.predict(pd.DataFrame(sample[None])), answer)
