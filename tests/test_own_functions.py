"""A loss, metrics and transforms of the project's own, and those of torch and torchmetrics by name."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ruamel.yaml import YAML
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from bigstep.atomic_files import read_metrics
from bigstep.config.model import ModelConfig
from bigstep.config.params import Params, flatten, parse_params
from bigstep.data.store import Store
from bigstep.data.transforms import check_transforms
from bigstep.errors import ConfigError, DataError, ModelError, UserError
from bigstep.evaluation.more_metrics import MoreMetrics
from bigstep.planning.measure import MeasuredData, MeasurementRequest
from bigstep.planning.measure_worker import build_measured_training
from bigstep.project.parameters import check_params
from bigstep.runs.checkpoints import CheckpointWriter
from bigstep.runs.code_digest import digest_code
from bigstep.step.losses import CrossEntropy
from bigstep.tasks.registry import task_of
from bigstep.training.chosen_loss import build_loss
from bigstep.training.invariance import check_slice_invariance
from bigstep.training.loop import take_step, train_epochs
from bigstep.training.setup import build_training
from bigstep.training.state import TrainingState, build_state
from bigstep.training.training_batches import TrainingBatches, lost_worker
from dvc_dependencies import ROOT

LOSSES = """
import torch
import torch.nn.functional as F


def focal(outputs, targets, gamma=2.0):
    nats = F.cross_entropy(outputs, targets, reduction="none")
    return (1 - (-nats).exp()) ** gamma * nats


class Weighted:
    def __init__(self, num_classes, first=2.0):
        self.weights = torch.ones(num_classes, dtype=torch.float64)
        self.weights[0] = first

    def __call__(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none"), self.weights[targets]


def absolute(outputs, targets):
    return (outputs - targets).abs()


def reduced(outputs, targets):
    return F.cross_entropy(outputs, targets)


def broken(outputs, targets):
    return outputs[:, 99].sum(dim=1)


def one(outputs):
    return outputs


def centred(outputs, targets):
    return F.cross_entropy(outputs - outputs.mean(dim=0) * outputs.std(), targets, reduction="none")


class Learning(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
"""
METRICS = """
import numpy as np
import torch


def worst(predictions, targets, share=1.0):
    return float((predictions.argmax(dim=1) != targets).double().mean()) * share


def undefined(predictions, targets):
    return float("nan")


class Count:
    def __init__(self):
        self.total = 0

    def update(self, predictions, targets):
        self.total += len(targets)

    def compute(self):
        return self.total


def several(predictions, targets):
    return predictions.mean(dim=0)


def broken(predictions, targets):
    return predictions["a"]


def accuracy(predictions, targets):
    return 1.0


class Neither:
    pass


def emptied(predictions, targets):
    predictions[:] = targets[:] = 0
    return 0.0


class Emptied:
    def update(self, predictions, targets):
        emptied(predictions, targets)

    def compute(self):
        return 1.0
"""
TRANSFORMS = """
import os

import numpy as np
import torch


def noisy(image, scale=10.0):
    return (image.float() + scale * torch.randn(image.shape)).clamp(0, 255).byte()


class Dark:
    def __call__(self, image):
        return image // 2


class Alone:
    def __init__(self):
        self.numbers = np.random.default_rng(0)

    def __call__(self, image):
        return image // int(self.numbers.integers(1, 9))


def deadly(image):
    if torch.utils.data.get_worker_info() is not None:
        os._exit(9)
    return image


def flat(image):
    return image.flatten()


def broken(image):
    return image.no_such_thing


def pixels(image):
    image = image.float()
    image[..., 0] = 1.0
    return image
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with code of its own, which the process works in."""
    (tmp_path / "params.yaml").touch()
    for name, text in (("losses", LOSSES), ("metrics", METRICS), ("transforms", TRANSFORMS)):
        path = tmp_path / "custom" / "model" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _params(micro: int = 16, **train: Any) -> Params:
    hardware = {"micro_batch_size": micro, "threads": 1, "memory_budget": "none"}
    values = {"epochs": 1, "effective_batch_size": 64, "warmup_fraction": 0.0, **train}
    return parse_params({"model": {"width": 4}, "hardware": hardware, "train": values})


def _begin(store: Store, params: Params) -> TrainingState:
    return build_training(store, params.batch, params, weights=None)


def _weights(state: TrainingState) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.classifier.parameters()])


def _loss(loss: Any, task: str = "classification", count: int = 3, **train: Any) -> Any:
    numbers = ((0.0,) * count, (2.0,) * count) if task == "regression" else ((), ())
    section = _params(loss=loss, **train).train
    return build_loss(section, task_of(task, [str(n) for n in range(count)], *numbers), None, torch.device("cpu"))


@pytest.mark.parametrize(
    "loss",
    [
        "custom/model/losses.py:focal",
        {"custom/model/losses.py:focal": {"gamma": 1.0}},
        {"custom/model/losses.py:Weighted": {"first": 3.0}},
        {"CrossEntropyLoss": {"weight": [float(n + 1) for n in range(10)]}},
        {"MultiMarginLoss": {"weight": [1, *[2] * 9]}},
    ],
)
def test_float64_weights_are_those_of_one_pass_whatever_the_slicing(digits: Store, loss: Any) -> None:
    found = []
    for micro in (64, 7):
        params = _params(micro, loss=loss, precision="float64")
        state = _begin(digits, params)
        for batch, (images, labels) in enumerate(TrainingBatches(digits, params.train, 64, 0).epoch(0)):
            if batch < 3:
                take_step(state, params.train, images, labels)
        found.append(_weights(state))
    assert (found[0] - found[1]).abs().max() < 1e-9


def test_losses_of_torch_are_those_of_torch() -> None:
    torch.manual_seed(0)
    outputs, numbers = torch.randn(6, 2).double(), torch.randn(6, 2).double() * 2
    huber = _loss({"HuberLoss": {"delta": 0.5}}, "regression", 2)
    torch.testing.assert_close(huber(outputs, numbers).mean(), F.huber_loss(outputs, numbers / 2, delta=0.5))
    labels = torch.randint(0, 2, (6, 2)).byte()
    margin = _loss("MultiLabelSoftMarginLoss", "multilabel", 2)
    torch.testing.assert_close(margin(outputs, labels).mean(), F.multilabel_soft_margin_loss(outputs, labels.double()))
    weighed = _loss({"CrossEntropyLoss": {"weight": [1.0, 2.0], "label_smoothing": 0.1}}, count=2)
    assert isinstance(weighed, CrossEntropy)
    classes = torch.tensor([0, 1, 1, 0, 1, 0])
    expected = F.cross_entropy(outputs, classes, weight=torch.tensor([1.0, 2.0]).double(), label_smoothing=0.1)
    torch.testing.assert_close(weighed.sum(outputs, classes) / weighed.weight(classes), expected)
    own = _loss("custom/model/losses.py:absolute", "regression", 2)
    torch.testing.assert_close(own(outputs, numbers).mean(), (outputs - numbers / 2).abs().mean())


@pytest.mark.parametrize(
    ("loss", "train", "expected"),
    [
        (
            "custom/model/losses.py:reduced",
            {},
            "(custom/model/losses.py:24): expected one loss per sample, shape (2,), got shape ()",
        ),
        ("custom/model/losses.py:broken", {}, "custom/model/losses.py:29: IndexError: index 99"),
        ("custom/model/losses.py:one", {}, "(custom/model/losses.py:32): expected a function, or a class"),
        ("custom/model/losses.py:Learning", {}, "expected a loss without parameters"),
        ({"custom/model/losses.py:focal": {"beta": 1}}, {}, "got an unexpected keyword argument 'beta'"),
        ("custom/model/losses.py:nothing", {}, "has no attribute 'nothing'"),
        ("HuberLoss", {}, "expected a loss for targets of classification"),
        ({"CrossEntropyLoss": {"weight": ["a", "b", "c"]}}, {}, "CrossEntropyLoss does not accept these arguments"),
        ({"CrossEntropyLoss": {"weights": 3}}, {}, "CrossEntropyLoss does not accept these arguments"),
        ({"MultiMarginLoss": {}}, {"mixup_alpha": 0.2}, "and targets of shape (2, 3), got RuntimeError"),
        ("CrossEntropyLoss", {"class_weights": "balanced"}, "train.class_weights: expected null with train.loss, which takes"),
        ("CrossEntropyLoss", {"label_smoothing": 0.2}, "train.label_smoothing: expected 0.05 with train.loss"),
    ],
)
def test_what_is_wrong_with_a_loss_is_one_line(loss: Any, train: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as raised:
        _loss(loss, **train)
    assert expected in str(raised.value)
    assert "train." in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_loss_that_looks_across_samples_is_named(digits: Store) -> None:
    for name, holds in (("centred", False), ("focal", True)):
        params = _params(loss=f"custom/model/losses.py:{name}")
        state = _begin(digits, params)
        assert check_slice_invariance(state, params.train, digits).holds is holds
        state.guard.close()


def test_a_loss_that_is_called_is_refused_with_auxiliary_heads(digits: Store) -> None:
    params, state = _params(loss="MultiMarginLoss"), _begin(digits, _params())
    options: Any = {"num_samples": 10, "task": state.task, "loss": _loss("MultiMarginLoss")}
    with pytest.raises(ConfigError, match=r"train\.loss: expected null or CrossEntropyLoss with model\.name googlenet"):
        build_state(state.classifier, params.train, params.batch, **options, model=ModelConfig(name="googlenet"))


def test_a_training_with_its_own_loss_and_transforms_resumes_in_the_same_bytes(digits: Store, tmp_path: Path) -> None:
    augmentation = [
        "RandomHorizontalFlip",
        {"custom/model/transforms.py:noisy": {"scale": 5.0}},
        "custom/model/transforms.py:Dark",
    ]
    params = _params(loss="custom/model/losses.py:focal", augmentation=augmentation, epochs=1, effective_batch_size=512)

    def run(state: TrainingState, until: int = 99) -> None:
        for _ in train_epochs(state, params.train, digits, TrainingBatches(digits, params.train, 512, 0)):
            if state.step == until:
                writer.save(state, {}, micro_batch_size=16)
                return

    writer = CheckpointWriter(tmp_path / "checkpoints", 1e9, {})
    whole, again = _begin(digits, params), _begin(digits, params)
    run(whole)
    run(_begin(digits, params), until=1)
    assert writer.restore(again, micro_batch_size=16) is not None
    run(again)
    assert torch.equal(_weights(whole), _weights(again))
    whole.guard.close()


def test_code_that_decides_what_is_learned_belongs_to_the_fingerprint(project: Path) -> None:
    plain = parse_params({})
    assert plain.training_code == ()
    assert "train.loss" not in flatten(plain)
    assert "evaluate.metrics" not in flatten(plain)
    augmentation = ["RandomHorizontalFlip", {"RandomApply": {"transforms": ["custom/model/transforms.py:Dark"]}}]
    params = parse_params({"train": {"loss": {"custom/model/losses.py:focal": {"gamma": 1.0}}, "augmentation": augmentation}})
    assert params.training_code == ("custom/model/losses.py:focal", "custom/model/transforms.py:Dark")
    assert flatten(params)["train.loss"] == {"custom/model/losses.py:focal": {"gamma": 1.0}}
    before = digest_code(*params.training_code)
    (project / "custom" / "model" / "losses.py").write_text(LOSSES + "\n# changed\n", encoding="utf-8")
    assert digest_code(*params.training_code) != before
    assert digest_code(*plain.training_code) == digest_code("small_cnn")


def test_a_name_that_leads_nowhere_is_refused_before_anything_runs() -> None:
    for section in ({"train": {"loss": "custom/model/losses.py:away"}}, {"evaluate": {"metrics": ["custom/model/no.py:f"]}}):
        with pytest.raises(ConfigError, match=r"(train\.loss|evaluate\.metrics): expected a f"):
            check_params(section)


def test_a_training_is_measured_with_its_own_loss() -> None:
    params = _params(loss="custom/model/losses.py:focal")
    sections = {name: getattr(params, name).model_dump(mode="json") for name in ("model", "train", "hardware", "tracking")}
    state = build_measured_training(MeasurementRequest(sections, MeasuredData(1, 8, 3), until=0.0), params.train)
    state.guard.close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("custom/model/transforms.py:flat", "expected images of shape (1, 8, 8), got (64,)"),
        ("custom/model/transforms.py:broken", "custom/model/transforms.py:36: AttributeError"),
        ("custom/model/transforms.py:pixels", "expected floating-point images of fractions from 0 to 1, got 1 to 200; divide"),
        ("custom/model/transforms.py:Alone", "expected transforms that return the same image for the same seed"),
        ({"custom/model/transforms.py:noisy": {"size": 3}}, "got an unexpected keyword argument 'size'"),
    ],
)
def test_what_is_wrong_with_a_transform_is_one_line(name: Any, expected: str) -> None:
    images = [torch.full((1, 8, 8), 200, dtype=torch.uint8)] * 4
    with pytest.raises(ConfigError, match=r"train\.augmentation") as raised:
        check_transforms([name], images, 0)
    assert expected in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_own_transforms_draw_numbers_keyed_by_sample(digits: Store) -> None:
    params = _params(augmentation=[{"RandomApply": {"transforms": ["custom/model/transforms.py:noisy"], "p": 0.5}}])
    first, again = (next(TrainingBatches(digits, params.train, 64, workers).epoch(0))[0] for workers in (0, 0))
    assert torch.equal(first, again)
    other = next(TrainingBatches(digits, params.train, 32, 0).epoch(0))[0]
    assert torch.equal(first[:32], other)


def test_a_worker_that_dies_is_one_line(digits: Store) -> None:
    params = _params(augmentation=["custom/model/transforms.py:deadly"])
    batches = TrainingBatches(digits, params.train, 64, 1)
    with pytest.raises(DataError, match=r"hardware\.num_workers: expected workers that live, got: DataLoader worker") as raised:
        next(batches.epoch(0))
    assert len(str(raised.value).splitlines()) == 1
    assert lost_worker(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


@pytest.mark.slow
def test_a_worker_that_is_not_forked_finds_own_transforms(digits: Store) -> None:
    """From Python 3.14 on workers are not forked on Linux."""
    params = _params(augmentation=["custom/model/transforms.py:Dark"])
    here = [tuple(map(Tensor.clone, batch)) for batch in TrainingBatches(digits, params.train, 700, 0).epoch(0)]
    batches = TrainingBatches(digits, params.train, 700, 1)
    assert batches._loader is not None
    batches._loader.multiprocessing_context = "spawn"
    for (images, labels), (expected, classes) in zip(batches.epoch(0), here, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, classes)


def _scores(named: list[Any], task: str, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    names = [str(n) for n in range(predictions.shape[1])]
    numbers = ((0.0,) * len(names), (1.0,) * len(names)) if task == "regression" else ((), ())
    found = MoreMetrics(named, task_of(task, names, *numbers), ["accuracy"])
    parts = [(predictions[rows], targets[rows]) for rows in (slice(0, 7), slice(7, None))]
    assert len(list(found.watch(iter(parts)))) == 2
    return found.values()


def test_metrics_of_torchmetrics_and_of_the_project() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), 50).astype(np.float32)
    labels = rng.integers(0, 3, 50)
    named = ["MulticlassAccuracy", {"AUROC": {"average": "macro"}}, {"custom/model/metrics.py:worst": {"share": 2.0}}]
    found = _scores([*named, "custom/model/metrics.py:Count"], "classification", shares, labels)
    assert found["AUROC"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, shares, multi_class="ovr"), rel=1e-5)
    assert found["worst"] == pytest.approx(2 * (shares.argmax(axis=1) != labels).mean())
    assert found["Count"] == 50
    both = rng.random((50, 2)).astype(np.float32)
    actual = rng.integers(0, 2, (50, 2)).astype(np.uint8)
    auroc = _scores(["MultilabelAUROC"], "multilabel", both, actual)["MultilabelAUROC"]
    assert auroc == pytest.approx(sklearn_metrics.roc_auc_score(actual, both), rel=1e-5)
    values = rng.normal(size=(50, 1))
    error = _scores(["PearsonCorrCoef"], "regression", values.astype(np.float32), values * 2)
    assert error["PearsonCorrCoef"] == pytest.approx(1, abs=1e-5)


def test_a_metric_that_changes_what_it_is_given_changes_no_result() -> None:
    found = MoreMetrics(["custom/model/metrics.py:Emptied"], task_of("classification", "ab"))
    shares, labels = np.full((3, 2), 0.5, np.float32), np.ones(3, np.int64)
    ((after, targets),) = found.watch(iter([(shares.copy(), labels.copy())]))
    assert (after == shares).all()
    assert (targets == labels).all()
    rng = np.random.default_rng(0)
    several, actual = rng.dirichlet(np.ones(3), 50).astype(np.float32), rng.integers(0, 3, 50)
    worst = "custom/model/metrics.py:worst"
    expected = _scores([worst], "classification", several, actual)["worst"]
    assert _scores(["custom/model/metrics.py:Emptied", worst], "classification", several, actual)["worst"] == expected > 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Accurcy", "did you mean 'Accuracy'?"),
        ({"MulticlassAccuracy": {"avrage": "macro"}}, "MulticlassAccuracy does not accept these arguments"),
        ("custom/model/metrics.py:broken", "custom/model/metrics.py:30: "),
        ("custom/model/metrics.py:several", "expected one number, got 3"),
        ("custom/model/metrics.py:accuracy", "expected a name that is not taken, got accuracy again"),
        ("custom/model/metrics.py:Neither", "expected a function that returns a number, or a class with update and compute"),
    ],
)
def test_what_is_wrong_with_a_metric_is_one_line(name: Any, expected: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=r"evaluate\.metrics") as raised:
        _scores([name], "classification", np.full((9, 3), 0.3, np.float32), np.arange(9) % 3)
    assert expected in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_missing_torchmetrics_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ConfigError, match=r"expected the package torchmetrics for AUROC, got none; install bigstep\[metrics\]"):
        MoreMetrics(["AUROC"], task_of("classification", "abc"))


def test_the_pages_functions_and_parameters_are_accepted(project: Path, digits: Store) -> None:
    page = (ROOT / "docs" / "custom.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "custom/model/functions.py" in block]
    (project / "custom" / "model" / "functions.py").write_text(code, encoding="utf-8")
    found = [YAML(typ="safe").load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    for content in found:
        parse_params(content)
    (functions,) = [content for content in found if "evaluate" in content]
    params = check_params(functions)
    state = _begin(digits, _params(loss=params.train.loss, augmentation=params.train.augmentation))
    images, labels = next(TrainingBatches(digits, params.train, 16, 0).epoch(0))
    assert take_step(state, _params().train, images, labels).applied
    shares, classes = np.eye(3, dtype=np.float32)[[0, 1, 2] * 3] * 0.7 + 0.1, np.array([0, 1, 2] * 3)
    assert _scores(list(params.evaluate.metrics), "classification", shares, classes) == {"errors": 0.0, "AUROC": 1.0}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's own
def test_more_metrics_are_written_reported_and_logged(
    project: Path, digits: Store, empty_database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bigstep.stages.evaluate import evaluate
    from bigstep.stages.stage_runner import run_stage
    from bigstep.stages.train import train
    from bigstep.tracking.database import open_client

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copyfile(ROOT / "dvc.yaml", project / "dvc.yaml")
    shutil.copyfile(empty_database, project / "mlflow.db")
    (project / "data").mkdir()
    shutil.copytree(digits.paths.root, project / "data" / "prepared")
    content = {
        "model": {"width": 4},
        "train": {"epochs": 1, "loss": "custom/model/losses.py:focal"},
        "evaluate": {"metrics": ["custom/model/metrics.py:worst", "custom/model/metrics.py:undefined", "AUROC"]},
    }
    (project / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    for name, body in (("train", train), ("evaluate", evaluate)):
        assert run_stage(name, body) == 0, capsys.readouterr().err
    results = json.loads((project / "results" / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    assert results["test_undefined"] is None, "NaN is no JSON"
    assert math.isnan(read_metrics(project / "results" / "evaluate" / "metrics.json")["test_undefined"])
    assert results["test_worst"] == pytest.approx(1 - results["test_accuracy"])
    assert "AUROC" in (project / "results" / "evaluate" / "report.html").read_text(encoding="utf-8")
    client = open_client(f"sqlite:///{project / 'mlflow.db'}")
    run = client.search_runs([item.experiment_id for item in client.search_experiments()])[0]
    assert run.data.metrics["test_worst"] == results["test_worst"]
    assert run.data.params["train.loss"] == "custom/model/losses.py:focal"
