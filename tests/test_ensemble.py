"""Ensembles: chosen on the validation part, one model to load and serve, and what it gained over its best member."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from bigstep.atomic_files import read_json
from bigstep.commands.ensemble import combine
from bigstep.comparison.paired import paired_interval, paired_score_interval
from bigstep.config.data import DataConfig
from bigstep.config.model import ModelConfig
from bigstep.config.params import parse_params, read_params
from bigstep.data.sources import open_source
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.data.store_writer import prepare_store
from bigstep.ensembles.building import build, plan_ensemble
from bigstep.ensembles.combining import choose_greedily, fit_label_temperature, fit_temperature, mean_nats
from bigstep.ensembles.measures import Part, measure_of
from bigstep.ensembles.members import check_members, predict_part, read_members
from bigstep.ensembles.soup import check_soup
from bigstep.errors import ModelError
from bigstep.models.building import InputShape
from bigstep.models.ensemble import Ensemble
from bigstep.models.model_files import build_classifier, load_classifier, save_model
from bigstep.project.parameters import check_params
from bigstep.runs.trained_model import model_card
from bigstep.tasks.registry import task_of
from bigstep.tracking.database import open_client
from bigstep.training.loop import train_epochs
from bigstep.training.setup import build_training
from bigstep.training.training_batches import TrainingBatches
from conftest import copy_prepared
from faults.project import Project
from targets import DATASET, SOURCES


def _probabilities(count: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    logits = 3.0 * np.eye(4)[labels] + noise * random.normal(size=(count, 4))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def test_greedy_choice_leaves_out_what_harms_and_is_no_worse_than_the_best() -> None:
    good, labels = _probabilities(400, 2.0, 0)
    other, _ = _probabilities(400, 2.0, 1)
    bad = np.roll(good, 1, axis=1)
    counts = choose_greedily([good, bad, other], lambda mean: mean_nats(mean, labels))
    assert counts[1] == 0
    assert min(counts[0], counts[2]) >= 1
    combined = (counts[0] * good + counts[2] * other) / sum(counts)
    assert mean_nats(combined, labels) < min(mean_nats(good, labels), mean_nats(other, labels))


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_of_logits_that_were_scaled_is_found(temperature: float) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(50_000, 3))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (shares.cumsum(axis=1) < random.random((len(shares), 1))).sum(axis=1)  # drawn from them
    scaled = np.exp(logits * temperature) / np.exp(logits * temperature).sum(axis=1, keepdims=True)
    assert fit_temperature(scaled, labels) == pytest.approx(temperature, rel=0.03)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    found = [paired_interval(random.normal(0.1, 1.0, 100)) for _ in range(40)]
    assert 34 <= sum(item.low <= 0.1 <= item.high for item in found) <= 40


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_of_labels_that_were_scaled_is_found(temperature: float) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(30_000, 2))
    has_label = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    scaled = 1 / (1 + np.exp(-logits * temperature))
    assert fit_label_temperature(scaled, has_label) == pytest.approx(temperature, rel=0.03)


def test_the_interval_of_a_mean_is_the_same_as_of_a_score_made_of_means() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(0.1, 1.0, (2, 400, 1))
    found, expected = paired_score_interval(first, second, lambda means: means[:, 0]), paired_interval((first - second)[:, 0])
    assert found.mean == pytest.approx(expected.mean)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_the_interval_of_f1_covers_the_true_difference_as_often_as_it_says() -> None:
    """Two models that are equally good: the difference is 0."""
    random, measure = np.random.default_rng(0), measure_of(task_of("multilabel", "ab"))
    covered = 0
    for _ in range(40):
        actual = random.integers(0, 2, (150, 2)).astype(np.uint8)
        one, other = (Part(np.abs(actual - 0.9 * (random.random(actual.shape) < 0.2)), actual) for _ in range(2))
        interval = measure.gain(one, other)
        assert interval.mean == pytest.approx(measure.score(one) - measure.score(other))
        covered += interval.low <= 0 <= interval.high
    assert 34 <= covered <= 40


def test_scores_of_parts_are_those_of_the_report() -> None:
    random = np.random.default_rng(0)
    labels = Part(random.random((50, 3)).astype(np.float32).astype(np.float64), random.integers(0, 2, (50, 3)).astype(np.uint8))
    numbers = Part(random.normal(5, 1, (50, 2)).astype(np.float32).astype(np.float64), random.normal(5, 1, (50, 2)))
    for part, task in ((labels, task_of("multilabel", "abc")), (numbers, task_of("regression", "ab", (5.0, 5.0), (2.0, 0.5)))):
        measure = measure_of(task)
        total = measure.scores(part, num_bins=10).summary()
        assert measure.score(part) == pytest.approx(total[measure.name])
        assert measure.losses(part).mean() == pytest.approx(total["loss"])


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_an_ensemble_predicts_the_weighted_mean_of_what_its_members_predict(task: str) -> None:
    found = task_of(task, ("a", "b"), (100.0, -3.0), (7.0, 0.1))
    members = [build_classifier(ModelConfig(width=4), InputShape(1, 8, 2), mean=(0.3,), std=(0.4,)).eval() for _ in range(2)]
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        one, other = (found.predict(member(images).double() * 50) for member in members)
        combined = found.combine([member(images).double() * 50 for member in members], torch.tensor([0.75, 0.25]).double())
        torch.testing.assert_close(found.predict(combined), 0.75 * one + 0.25 * other, rtol=1e-5, atol=1e-6)
        ensemble = Ensemble(members, [3.0, 1.0], 2.0, task=found)
        expected = found.combine([member(images) for member in members], torch.tensor([0.75, 0.25]).double()) / 2
        assert torch.equal(ensemble(images), expected)


def _members(root: Path, store: Store) -> list[tuple[str, Path]]:
    """Train three networks from one start, the last one with targets that are not its own."""
    content = {"model": {"width": 4, "dropout": 0.0}, "hardware": {"micro_batch_size": 16, "threads": 1}}
    folders = []
    for name, rate, epochs in (("low", 0.004, 6), ("high", 0.02, 6), ("none", 1e-7, 1)):
        train = {"epochs": epochs, "effective_batch_size": 8, "learning_rate": rate, "label_smoothing": 0.0}
        params = parse_params({**content, "train": train})
        state = build_training(store, params.batch, params, weights=None)
        for _ in train_epochs(state, params.train, store, TrainingBatches(store, params.train, 8, 0)):
            pass
        assert state.best is not None
        card = model_card(store, state, state.best, params, params.batch)
        card.model["weights"] = "weights/start.safetensors"
        folder = root / "members" / name
        folder.mkdir(parents=True)
        save_model(state.classifier.network.state_dict(), card, folder)
        folders.append((name, folder))
    return folders


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's own
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_and_numbers_are_combined_registered_and_served_as_one_model(
    tmp_path: Path, task: str, empty_database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, store = _project(tmp_path, task, empty_database, monkeypatch)
    folders, params = _members(root, store), check_params(read_params(root / "params.yaml"))
    told: list[dict[str, Any]] = []
    assert combine(root, params, folders, greedy=True, soup=False, report=told.append) == 0
    assert told[0]["members"]["none"] == 0
    metrics, output = read_json(root / "results" / "ensemble" / "metrics.json"), capsys.readouterr().out
    score = {"multilabel": "f1", "regression": "mae"}[task]
    assert metrics[f"{score}_gain_low"] <= metrics[f"{score}_gain"] <= metrics[f"{score}_gain_high"]
    title = {"multilabel": "macro F1", "regression": "mean absolute error"}[task]
    assert f"test {title} against" in output
    page = (root / "results" / "ensemble" / "report.html").read_text(encoding="utf-8")
    assert f"{title} {'gained' if score == 'f1' else 'saved'} over" in page
    ensemble, card = load_classifier(root / "results" / "ensemble")
    assert card.task == task
    assert (card.temperature == 1) == (task == "regression")
    version = open_client(f"sqlite:///{root / 'mlflow.db'}").get_model_version_by_alias(
        f"bigstep-{SOURCES[task][-7:].rpartition(':')[2]}", "champion"
    )
    images = np.array(store.images[:3])
    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    answer = mlflow.pyfunc.load_model(version.source).predict(images.astype(np.float32))
    with torch.no_grad():
        expected = card.output.predict(ensemble(torch.from_numpy(images).permute(0, 3, 1, 2)))
    assert tuple(answer.columns) == card.classes
    np.testing.assert_allclose(answer, expected.numpy(), rtol=1e-5, atol=1e-6)
    members = read_members(folders[:2], code="")
    check_soup(members)
    cpu = torch.device("cpu")
    _, card, soup = build(members, plan_ensemble(members, store, cpu, greedy=False), store, cpu, soup=True)
    assert len(card.members) == len(soup.members) == 1
    assert card.score == pytest.approx(
        measure_of(card.output).score(predict_part(soup, store, Split.VALIDATION, cpu)), rel=1e-5
    )


def _project(root: Path, task: str, database: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Store]:
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (root / "custom" / "data").mkdir(parents=True)
    (root / "custom" / "data" / "made.py").write_text(DATASET.replace("count=48", "count=160"), encoding="utf-8")
    (root / "params.yaml").write_text(json.dumps({"data": {"source": SOURCES[task]}}), encoding="utf-8")
    shutil.copyfile(database, root / "mlflow.db")
    data, folder = DataConfig(source=SOURCES[task]), root / "data" / "prepared"
    folder.mkdir(parents=True)
    for _ in prepare_store(open_source(data, root, num_workers=0), data, folder):
        pass
    return root, Store(folder)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, two_seeds: Path) -> Path:
    """A project with two runs of one epoch, and an ensemble of them."""
    folder = tmp_path_factory.mktemp("ensemble")
    project = copy_prepared(two_seeds / "project", folder / "project")
    (folder / "output").write_text(project.bigstep("ensemble", "--seeds", "2"), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_an_ensemble_of_seeds_is_one_model_with_its_gain_and_interval(seeds: Path) -> None:
    output, root = (seeds / "output").read_text(encoding="utf-8"), seeds / "project"
    metrics = read_json(root / "results" / "ensemble" / "metrics.json")
    assert "test accuracy against seed" in output
    assert metrics["accuracy_gain_low"] <= metrics["accuracy_gain"] <= metrics["accuracy_gain_high"]
    assert "is champion" in output
    text = (root / "results" / "ensemble" / "card.md").read_text(encoding="utf-8")
    assert "# Model card: ensemble of 2 on digits\n" in text
    assert "| accuracy gained over seed" in text
    ensemble, card = load_classifier(root / "results" / "ensemble")
    assert isinstance(ensemble, Ensemble)
    assert len(card.members) == 2
    folders = [root, *(path.parent for path in (root / ".bigstep" / "workspaces").glob("*/params.yaml"))]
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        each = [load_classifier(folder / "results" / "train")[0](images).double().softmax(dim=1) for folder in folders]
        expected = (torch.stack(each).mean(dim=0).log() / card.temperature).softmax(dim=1)
        torch.testing.assert_close(ensemble(images).softmax(dim=1), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
def test_members_in_folders_and_of_the_registry_give_the_same_ensemble(
    seeds: Path,
) -> None:
    """The champion is the ensemble of the seeds; its two members are versions 1 and 2."""
    project = Project(seeds / "project")
    (other,) = (path.parent for path in (project.root / ".bigstep" / "workspaces").glob("*/params.yaml"))
    before = (project.root / "results" / "ensemble" / "model.safetensors").read_bytes()
    names = [f"models:/bigstep-digits/{number}" for number in (1, 2)]
    project.bigstep("ensemble", *names)
    assert (project.root / "results" / "ensemble" / "model.safetensors").read_bytes() == before
    project.bigstep("ensemble", "results/train", str(other / "results" / "train"), "--greedy")
    assert (project.root / "results" / "ensemble" / "members.csv").read_text(encoding="utf-8").startswith("member,count")


@pytest.mark.slow
def test_members_that_do_not_fit_are_one_line(seeds: Path) -> None:
    root = seeds / "project"
    store, one, both = Store(root / "data" / "prepared"), root / "results" / "train", root / "results" / "ensemble"
    with pytest.raises(ModelError, match="expected a single model, got an ensemble of 2; name its members"):
        read_members([("both", both)], code="")
    with pytest.raises(ModelError, match="expected at least two models, got 1"):
        check_members(read_members([("one", one)], code=""), store)
    members = read_members([("one", one), ("again", one)], code="")
    with pytest.raises(ModelError, match="again: expected other weights than those of one"):
        check_members(members, store)
    with pytest.raises(ModelError, match="one: expected other weights than those of one"):
        check_members([members[0], members[0]], store)
    with pytest.raises(ModelError, match="expected members that share their starting weights"):
        check_soup(members)
    for change in ({"data_digest": "0"}, {"precision": "float64"}):
        other = replace(members[1], card=replace(members[1].card, weights_sha256="0", **change))
        with pytest.raises(ModelError, match="other: expected"):
            check_members([members[0], replace(other, name="other")], store)


@pytest.mark.slow
def test_a_soup_is_one_network_with_the_mean_of_the_weights(seeds: Path) -> None:
    root = seeds / "project"
    (copy,) = (path.parent for path in (root / ".bigstep" / "workspaces").glob("*/params.yaml"))
    members = read_members([("one", root / "results" / "train"), ("two", copy / "results" / "train")], code="")
    for member in members:
        member.card.model["weights"] = "weights/start.safetensors"
    check_soup(members)
    states = [dict(member.classifier.network.state_dict()) for member in members]
    expected = {name: (3 * states[0][name].double() + states[1][name].double()) / 4 for name in states[0]}
    store, cpu = Store(root / "data" / "prepared"), torch.device("cpu")
    plan = plan_ensemble(members, store, cpu, greedy=False)
    tensors, card, ensemble = build(members, replace(plan, counts=(3, 1)), store, cpu, soup=True)
    assert len(card.members) == len(ensemble.members) == 1
    assert all(torch.equal(tensors[f"0.{name}"], tensor.float()) for name, tensor in expected.items())
