"""Ensembles: chosen on the validation part, one model to load and serve, and what it gained over its best member."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bigstep.atomic_files import read_json
from bigstep.comparison.paired import paired_interval
from bigstep.data.store import Store
from bigstep.ensembles.building import build, plan_ensemble
from bigstep.ensembles.combining import choose_greedily, fit_temperature, mean_nats
from bigstep.ensembles.members import check_members, read_members
from bigstep.ensembles.soup import check_soup
from bigstep.errors import ModelError
from bigstep.models.ensemble import Ensemble
from bigstep.models.model_files import load_classifier
from conftest import copy_prepared
from faults.project import Project


def _probabilities(count: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    logits = 3.0 * np.eye(4)[labels] + noise * random.normal(size=(count, 4))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def test_greedy_choice_leaves_out_what_harms_and_is_no_worse_than_the_best() -> None:
    good, labels = _probabilities(400, 2.0, 0)
    other, _ = _probabilities(400, 2.0, 1)
    bad = np.roll(good, 1, axis=1)
    counts = choose_greedily([good, bad, other], labels)
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
