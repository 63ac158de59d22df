"""Exported models and weights with damaged or impossible content: one line, whatever the bytes."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from bigstep.config.model import ModelConfig
from bigstep.errors import UserError
from bigstep.models.building import InputShape
from bigstep.models.model_files import ModelCard, build_classifier, load_classifier, save_model
from bigstep.models.starting_weights import load_weights, read_tensors
from faults.mutations import Damage, mutated, mutated_json, read_damaged

NAN = math.nan
CARD = ModelCard(
    ModelConfig(width=4).model_dump(mode="json"), ("a", "b"), 8, 1, (0.3,), (0.4,), "float32", 8, 0, 1, 0.5, 0.5, "d", "v"
)
CASES: list[tuple[str, Any]] = [
    *[(name, value) for name in ("mean", "std") for value in ([], [NAN], [math.inf], ["x"], None, 0.5, [0.5, 0.5])],
    *[("std", [0.0]), ("std", [-1.0]), ("size", -8), ("size", 0), ("size", 10**9), ("size", 8.5), ("channels", -1)],
    *[("channels", 0), ("channels", 2), ("channels", 3), ("classes", []), ("classes", ["a", "a"]), ("classes", [1, 2])],
    *[("classes", ["a", "b", "c"]), ("classes", "ab"), ("model", {}), ("model", []), ("model", {"name": "no such"})],
    *[("model", {"width": 8}), ("weights_sha256", ""), ("format", 3), ("precision", 3), ("precision", "float8")],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    classifier = build_classifier(ModelConfig(width=4), InputShape(1, 8, 2), mean=(0.3,), std=(0.4,))
    save_model(classifier.network.state_dict(), CARD, tmp_path)
    return tmp_path


@pytest.mark.parametrize(("key", "value"), CASES)
def test_a_model_json_that_does_not_fit_is_one_line(folder: Path, key: str, value: Any) -> None:
    load_classifier(folder)
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, key: value}))
    with pytest.raises(UserError) as caught:
        load_classifier(folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("damage", [mutated, mutated_json])
def test_mutated_model_json_is_read_or_one_line(folder: Path, damage: Damage) -> None:
    found = read_damaged(folder / "model.json", lambda: load_classifier(folder), damage)
    assert found["read"]
    assert found["refused"]


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_mutated_weights_are_read_or_one_line(folder: Path, kind: str) -> None:
    classifier = build_classifier(ModelConfig(width=4), InputShape(1, 8, 2), mean=(0.3,), std=(0.4,))
    path = folder / ("model.safetensors" if kind == "safetensors" else "model.pth")
    if kind != "safetensors":
        torch.save(classifier.network.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_tensors(path)
    assert read_damaged(path, lambda: load_weights(classifier.network, path, 2))["refused"]
