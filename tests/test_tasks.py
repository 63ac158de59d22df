"""Several labels an image, and numbers to predict: the same pipeline as for classes, from the data set to the served model."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from sklearn import metrics
from torch import Tensor

from bigstep.commands.predict import predict
from bigstep.config.data import DataConfig
from bigstep.config.params import Params, parse_params
from bigstep.data.sources import open_source
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.data.store_writer import prepare_store
from bigstep.errors import ConfigError, DataError
from bigstep.evaluation.multilabel import LabelAnswers, score_labels
from bigstep.evaluation.regression import NumberAnswers, score_numbers
from bigstep.models.model_files import load_classifier
from bigstep.planning.measure import MeasuredData, MeasurementRequest
from bigstep.planning.measure_worker import build_measured_training
from bigstep.runs.checkpoints import CheckpointWriter
from bigstep.search.setup import check_objectives
from bigstep.stages.evaluate import evaluate
from bigstep.stages.prepare import prepare
from bigstep.stages.stage_runner import run_stage
from bigstep.stages.train import train as train_stage
from bigstep.tasks.registry import task_of
from bigstep.tasks.targets import targets_of
from bigstep.training.loop import take_step, train_epochs
from bigstep.training.setup import build_training
from bigstep.training.state import TrainingState
from bigstep.training.training_batches import TrainingBatches
from conftest import read_rows
from dvc_dependencies import ROOT
from targets import DATASET, SOURCES

TASKS = ("multilabel", "regression")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A project with a data set of its own for each task."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("data", "model"):
        (root / "custom" / folder).mkdir(parents=True)
    (root / "custom" / "data" / "made.py").write_text(DATASET, encoding="utf-8")
    (root / "params.yaml").write_text("data: {}\n", encoding="utf-8")
    shutil.copyfile(ROOT / "dvc.yaml", root / "dvc.yaml")
    shutil.copyfile(empty_database, root / "mlflow.db")
    return root


@pytest.fixture
def store(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
    """Prepare the data set of a task."""
    monkeypatch.chdir(project)

    def make(task: str) -> Store:
        data, folder = DataConfig(source=SOURCES[task]), tmp_path / task
        folder.mkdir()
        for _ in prepare_store(open_source(data, tmp_path, num_workers=0), data, folder):
            pass
        return Store(folder)

    return make


def _params(micro: int | None = 16, **train: Any) -> Params:
    content = {"model": {"width": 4}, "hardware": {"micro_batch_size": micro, "threads": 1, "memory_budget": "none"}}
    values = {"epochs": 3, "effective_batch_size": 16, "warmup_fraction": 0.0, **train}
    return parse_params({**content, "train": values})


def _begin(store: Store, params: Params) -> TrainingState:
    return build_training(store, params.batch, params, weights=None)


def _train(state: TrainingState, params: Params, store: Store, writer: CheckpointWriter | None = None, until: int = 99) -> None:
    batches = TrainingBatches(store, params.train, params.batch.effective_batch_size, 0)
    for _ in train_epochs(state, params.train, store, batches):
        if state.step == until and writer is not None:
            writer.save(state, {}, micro_batch_size=params.batch.micro_batch_size)
            return


def _weights(state: TrainingState) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.classifier.parameters()])


def test_targets_are_kept_in_the_store(store: Callable[[str], Store]) -> None:
    labels, numbers = store("multilabel"), store("regression")
    assert (labels.labels.dtype, labels.labels.shape) == (np.dtype(np.uint8), (48, 2))
    assert labels.manifest.counts["train"]["top"] == labels.labels[labels.indices(Split.TRAIN), 0].sum()
    assert sum(labels.manifest.part_sizes.values()) == 48
    assert (numbers.labels.dtype, numbers.labels.shape) == (np.dtype(np.float64), (48, 2))
    part = numbers.labels[numbers.indices(Split.TRAIN)]
    np.testing.assert_allclose(numbers.manifest.target_mean, part.mean(axis=0))
    np.testing.assert_allclose(numbers.manifest.target_std, part.std(axis=0))
    row = read_rows(labels.paths.samples)[1]
    assert row["class"] == "|".join(name for name, has in zip(("top", "left"), labels.labels[1], strict=True) if has)
    for each in (labels, numbers):
        each.verify()


@pytest.mark.parametrize("task", TASKS)
def test_a_store_with_other_targets_is_refused(store: Callable[[str], Store], task: str) -> None:
    made = store(task)
    wrong = made.labels.copy()
    wrong[0] = 2 if task == "multilabel" else np.nan
    for labels in (wrong, made.labels[:, :1], made.labels.astype(np.float32)):
        with pytest.raises(ValueError, match=r"labels\.npy"):
            made.manifest.targets.check(labels, 48)
    np.save(made.paths.labels, wrong)
    with pytest.raises(DataError, match="expected complete prepared data"):
        Store(made.paths.root)


@pytest.mark.parametrize("task", TASKS)
def test_float64_weights_are_those_of_one_pass_whatever_the_slicing(store: Callable[[str], Store], task: str) -> None:
    made, found = store(task), []
    for micro in (64, 7):
        params = _params(micro, precision="float64", effective_batch_size=64)
        params = replace(params, model=params.model.model_copy(update={"dropout": 0.1}))
        state = _begin(made, params)
        _train(state, params, made)
        found.append(_weights(state))
    assert (found[0] - found[1]).abs().max() < 1e-9


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_training_ends_in_the_same_bytes(store: Callable[[str], Store], task: str, tmp_path: Path) -> None:
    made, params = store(task), _params(monitor={"multilabel": "val_f1", "regression": "val_mae"}[task])
    whole = _begin(made, params)
    _train(whole, params, made)
    writer = CheckpointWriter(tmp_path / "checkpoints", 1e9, {})
    _train(_begin(made, params), params, made, writer, until=4)
    again = _begin(made, params)
    assert writer.restore(again, micro_batch_size=16) is not None
    assert again.step == 4
    _train(again, params, made)
    assert torch.equal(_weights(whole), _weights(again))
    assert whole.best is not None
    assert again.best is not None
    assert (whole.best.epoch, whole.best.loss, whole.best.score) == (again.best.epoch, again.best.loss, again.best.score)


@pytest.mark.parametrize(
    ("task", "keys", "expected"),
    [
        ("multilabel", {"label_smoothing": 0.1}, "train.label_smoothing: expected 0.05 with targets of multilabel"),
        ("multilabel", {"monitor": "val_mae"}, "train.monitor: expected val_loss or val_f1 with targets of multilabel"),
        ("multilabel", {"class_weights": [1.0, 2.0, 3.0]}, "train.class_weights: expected one weight for each of the 2 labels"),
        ("regression", {"mixup_alpha": 0.2}, "train.mixup_alpha: expected null with targets of regression"),
        ("regression", {"class_weights": "balanced"}, "train.class_weights: expected null with targets of regression"),
        ("regression", {"monitor": "val_accuracy"}, "train.monitor: expected val_loss or val_mae with targets of regression"),
    ],
)
def test_what_means_nothing_for_the_targets_is_refused(
    store: Callable[[str], Store], task: str, keys: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        _begin(store(task), _params(**keys))
    assert str(raised.value).startswith(expected)
    assert len(str(raised.value).splitlines()) == 1


def test_a_search_optimizes_the_score_of_the_data_only(store: Callable[[str], Store]) -> None:
    made = store("regression")
    for objective in ("val_loss", "val_mae", ["val_mae", "seconds"]):
        check_objectives(parse_params({"search": {"objective": objective}}), made)
    with pytest.raises(ConfigError, match=r"search\.objective: expected val_loss, val_mae, seconds, peak_bytes"):
        check_objectives(parse_params({"search": {"objective": "val_accuracy"}}), made)


def test_mixup_and_balanced_weights_work_with_several_labels(store: Callable[[str], Store]) -> None:
    made, params = store("multilabel"), _params(7, mixup_alpha=0.4, class_weights="balanced", precision="float64")
    state = _begin(made, params)
    images, labels = next(TrainingBatches(made, params.train, 16, 0).epoch(0))
    record = take_step(state, params.train, images, labels)
    assert record.applied
    part = made.labels[made.indices(Split.TRAIN)]
    positive = part.sum(axis=0)
    assert state.loss.pos_weight.tolist() == ((len(part) - positive) / positive).tolist()


def test_a_label_that_all_samples_have_is_learned_with_balanced_weights() -> None:
    targets = np.array([[1, 0], [1, 1], [1, 0], [1, 0]], np.uint8)
    loss: Any = task_of("multilabel", "ab").loss(_params(class_weights="balanced").train, targets)
    assert loss.pos_weight.tolist() == [0.25, 3.0]


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_names_are_looked_up_and_not_searched_for(task: str) -> None:
    """Open Images has 20,000 labels and millions of images."""
    compared = []

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return str.__eq__(self, other)

    targets = targets_of(task, [Name(f"label {number}") for number in range(1000)])
    found = targets.read("label 999" if task == "classification" else ["label 999"])
    assert targets.describe(found) == "label 999"
    assert len(compared) < 100


@pytest.mark.parametrize("task", TASKS)
def test_training_is_measured_with_targets_like_those_of_the_store(task: str) -> None:
    params = _params()
    sections = {name: getattr(params, name).model_dump(mode="json") for name in ("model", "train", "hardware", "tracking")}
    request = MeasurementRequest(sections, MeasuredData(1, 8, 3, task), until=0.0)
    state = build_measured_training(request, params.train)
    assert state.task.name == task
    state.guard.close()


@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ("labels", "[]", "set self.labels to a list of names"),
        ("labels", "['top', 'top']", "expected each of labels once and with a name"),
        ("labels", "['up', 'down']", "expected a list of labels among up, down, or 2 zeros and ones, got "),
        ("targets", "['mean']", "expected a finite number of at most 3.4e+38 (mean), got "),
        ("targets", "3", "set self.targets to a list of names"),
    ],
)
def test_what_is_wrong_with_targets_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attribute: str, value: str, expected: str
) -> None:
    (tmp_path / "params.yaml").touch()
    (tmp_path / "custom" / "data").mkdir(parents=True)
    names = {"labels": '["top", "left"]', "targets": '["mean", "top"]'}[attribute]
    text = DATASET.replace(f"{attribute} = {names}", f"{attribute} = {value}").replace("bright[0])", "bright[0])  #")
    text = text.replace("for name, has in zip(self.labels, bright) if has", 'for name in ("top",)')
    (tmp_path / "custom" / "data" / "made.py").write_text(text.replace("if index % 2 else bright", ""), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    data = DataConfig(source=SOURCES["multilabel" if attribute == "labels" else "regression"])
    (tmp_path / "store").mkdir()
    with pytest.raises(DataError, match=r"custom/data/made\.py:") as raised:
        list(prepare_store(open_source(data, tmp_path, num_workers=0), data, tmp_path / "store"))
    assert expected in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_scores_of_labels_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    actual, probabilities = rng.integers(0, 2, (60, 4)).astype(np.uint8), rng.random((60, 4)).astype(np.float32)
    answers = LabelAnswers.joined([LabelAnswers(probabilities[:9], actual[:9]), LabelAnswers(probabilities[9:], actual[9:])])
    scores = score_labels(answers, ("a", "b", "c", "d"), num_bins=10)
    predicted = probabilities > 0.5
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(actual, predicted, average="macro"))
    assert scores.micro_f1 == pytest.approx(metrics.f1_score(actual, predicted, average="micro"))
    assert scores.exact_match == pytest.approx(metrics.accuracy_score(actual, predicted))
    assert scores.loss == pytest.approx(np.mean([metrics.log_loss(actual[:, n], probabilities[:, n]) for n in range(4)]))
    tally = task_of("multilabel", "abcd").tally(torch.device("cpu"))
    logits = torch.logit(torch.from_numpy(probabilities).double())
    for rows in (slice(0, 7), slice(7, 60)):
        tally.add(logits[rows], torch.from_numpy(actual[rows]))
    assert tally.result() == pytest.approx((scores.loss, scores.macro_f1))


def test_scores_of_numbers_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    actual: NDArray[np.float64] = rng.normal(50, 7, (60, 2))
    predicted = (actual + rng.normal(0, 1, (60, 2))).astype(np.float32)
    mean, std = targets_of("regression", "ab").statistics(actual)
    scores = score_numbers(NumberAnswers.joined([NumberAnswers(predicted, actual)]), ("a", "b"), std)
    assert scores.mae == pytest.approx(metrics.mean_absolute_error(actual, predicted))
    assert scores.r2 == pytest.approx(metrics.r2_score(actual, predicted))
    assert scores.loss == pytest.approx((((predicted - actual) / actual.std(axis=0)) ** 2).mean())
    task = task_of("regression", "ab", mean, std)
    outputs = torch.from_numpy((predicted - np.asarray(mean)) / np.asarray(std))
    np.testing.assert_allclose(task.predict(outputs), predicted, rtol=1e-6)
    tally = task.tally(torch.device("cpu"))
    for rows in (slice(0, 7), slice(7, 60)):
        tally.add(outputs[rows], torch.from_numpy(actual[rows]))
    assert tally.result() == pytest.approx((scores.loss, scores.mae))


@pytest.mark.parametrize(("errors", "expected"), [((0.01, 0.0, 0.0), 0.0), ((0.0, 0.0, 0.0), 1.0)])
def test_a_number_that_is_always_the_same_in_the_test_part_has_no_share_explained(
    errors: tuple[float, ...], expected: float
) -> None:
    actual = np.full((3, 1), 0.1)  # whose mean is not 0.1
    predicted = actual + np.array(errors)[:, None]
    assert score_numbers(NumberAnswers(predicted, actual), ("a",), (1.0,)).r2 == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's own
@pytest.mark.parametrize("task", TASKS)
def test_the_whole_pipeline(
    project: Path, task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prepared, trained, evaluated and registered; `bigstep predict` answers by the exported and by the registered model."""
    from bigstep.tracking.database import open_client

    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    content = {
        "data": {"source": SOURCES[task]},
        "model": {"width": 4},
        "train": {"epochs": 2, "effective_batch_size": 16},
        "search": {"storage": "postgresql://me:secret@host/studies"},
    }
    (project / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    for name, body in (("prepare", prepare), ("train", train_stage), ("evaluate", evaluate)):
        assert run_stage(name, body) == 0, capsys.readouterr().err
    score = {"multilabel": "f1", "regression": "mae"}[task]
    rows = read_rows(project / "results" / "train" / "history.csv")
    assert f"val_{score}" in rows[0]
    _, card = load_classifier(project / "results" / "train")
    assert (card.task, card.val_accuracy, card.classes) == (task, None, ("top", "left") if score == "f1" else ("mean", "top"))
    results = project / "results" / "evaluate"
    assert {f"test_{'macro_f1' if score == 'f1' else 'mae'}", "test_loss"} <= set(
        json.loads((results / "metrics.json").read_text())
    )
    with (results / "predictions.csv").open(encoding="utf-8") as file:
        columns = next(csv.reader(file))
    expected = ["actual", "predicted", "p:top", "p:left"] if score == "f1" else ["actual:mean", "predicted:mean"]
    assert columns[2:6][: len(expected)] == expected
    assert f"test {'macro F1' if score == 'f1' else 'mean absolute error'}" in (results / "report.html").read_text("utf-8")
    client = open_client(f"sqlite:///{project / 'mlflow.db'}")
    version = client.get_model_version_by_alias(f"bigstep-{'Labels' if score == 'f1' else 'Numbers'}", "champion")
    artifacts = Path(client.get_run(version.run_id).info.artifact_uri.removeprefix("file://"))
    logged = (artifacts / "evaluate" / "report.html").read_text("utf-8")
    for text in (
        "Gradient norm before clipping",
        "Peak memory",
        "micro-batch size",
        "Tensors at the peak of a step",
        "training time",
    ):
        assert text in logged
        assert text not in (results / "report.html").read_text("utf-8")
    text = (results / "card.md").read_text("utf-8")
    assert version.description == text.partition("\n---\n")[2].strip()
    _check_logged_files(artifacts, content, text)
    (header,) = yaml.safe_load(text.partition("\n---\n")[0].removeprefix("---"))["model-index"]
    assert header["results"][0]["metrics"][0] == {"type": "macro_f1" if score == "f1" else "mae", "value": ANY}
    for name in ("Intended use", "Data", "Procedure", "Metrics", "Calibration", "Limits", "How to load and serve"):
        assert f"\n## {name}\n\n" in text
    assert "| train.epochs | 2 | 20 |" in text
    assert f"bigstep.{card.output.champion}" in version.tags
    run = client.get_run(version.run_id)
    assert run.info.run_name == "small_cnn, B 16, lr 0.004"
    assert run.data.tags["mlflow.note.content"].startswith("**")
    shown = {item.key: item for item in client.get_logged_model(version.source.rpartition("/")[2]).metrics}
    assert {"test_loss", "best_val_loss", f"best_val_{score}"} <= set(shown)
    assert shown["test_loss"].value == run.data.metrics["test_loss"]
    assert shown["test_loss"].dataset_name == ("Labels" if score == "f1" else "Numbers")
    assert len(client.get_metric_history(version.run_id, "test_loss")) == 1
    _check_served(project, version.source, card.output.output, list(card.classes))
    image = project / "image.png"
    _save_image(image)
    capsys.readouterr()
    answers = []
    for model in (str(project / "results" / "train"), f"bigstep-{'Labels' if score == 'f1' else 'Numbers'}"):
        assert predict(project, [image], model) == 0
        answers.append(capsys.readouterr().out.split(":")[1].split())
    assert answers[0] == answers[1]
    assert {"top", "left" if score == "f1" else "mean"} <= set(answers[0])


def _check_logged_files(artifacts: Path, content: dict[str, object], card: str) -> None:
    """The model card, and params.yaml without the password."""
    assert (artifacts / "evaluate" / "card.md").read_text("utf-8") == card
    params = yaml.safe_load((artifacts / "params.yaml").read_text("utf-8"))
    assert params == {**content, "search": {"storage": "postgresql://me:***@host/studies"}}


def _check_served(project: Path, source: str, output: str, names: list[str]) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    metadata = mlflow.models.get_model_info(source)
    assert metadata.metadata["output"] == output
    assert metadata.signature.outputs.input_names() == names
    assert metadata.metadata["classes"] == names


def _save_image(path: Path) -> None:
    from PIL import Image

    pixels = np.full((8, 8), 30, np.uint8)
    pixels[:4] += 120
    Image.fromarray(pixels).save(path)
