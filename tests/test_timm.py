"""Networks of timm: one line where it is missing, and what it is called with; with timm itself where it is installed."""

import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from bigstep.config.model import ModelConfig
from bigstep.config.params import parse_params
from bigstep.errors import ConfigError
from bigstep.models.building import InputShape, build_network
from bigstep.models.model_names import check_model

SHAPE = InputShape(channels=1, size=32, num_classes=4)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for timm, which is not among this project's requirements, that records what it is called with."""
    found: dict[str, Any] = {}

    def create_model(name: str, pretrained: bool = True, num_classes: int = 0, in_chans: int = 0, width: int = 3) -> nn.Module:
        found.update(name=name, pretrained=pretrained, width=width)
        pool = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(
            nn.Conv2d(in_chans, width, 3), nn.BatchNorm2d(width), pool, nn.Flatten(), nn.Linear(width, num_classes)
        )

    stand_in: Any = types.ModuleType("timm")
    stand_in.create_model, stand_in.is_model, stand_in.list_models = (
        create_model,
        {"resnet18"}.__contains__,
        lambda: ["resnet18"],
    )
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    return found


def test_a_missing_timm_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for check in (check_model, lambda model: build_network(model, SHAPE)):
        with pytest.raises(
            ConfigError, match=r"expected the package timm for timm/resnet18, got none; install bigstep\[timm\]"
        ):
            check(ModelConfig(name="timm/resnet18"))


def test_a_network_is_made_for_the_data_with_fresh_weights(called: dict[str, Any]) -> None:
    network = build_network(ModelConfig(name="timm/resnet18", options={"width": 5}), SHAPE)
    assert called == {"name": "resnet18", "pretrained": False, "width": 5}
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    assert not [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]  # model.norm group


@pytest.mark.usefixtures("called")
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "timm/resnet81"}, "did you mean 'resnet18'?"),
        ({"name": "timm/../etc"}, "expected timm/ and a name of timm.list_models"),
        (
            {"name": "timm/resnet18", "options": {"pretrained": True}},
            "got pretrained, which is not for networks that are trained",
        ),
        ({"name": "timm/resnet18", "options": {"checkpoint_path": "x"}}, "got checkpoint_path, which is not for"),
        ({"name": "timm/resnet18", "options": {"num_classes": 3}}, "got num_classes, which bigstep gives"),
        ({"name": "timm/resnet18", "options": {"depth": 3}}, "got an unexpected keyword argument 'depth'"),
        ({"name": "timm/hf-hub:someone/model"}, "expected custom/model/file.py:name or package.module:name"),
    ],
)
def test_what_timm_does_not_know_and_what_loads_weights_is_one_line(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build_network(ModelConfig(**values), SHAPE)
    assert expected in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.usefixtures("called")
def test_arrays_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected a network of your own for samples of shape"):
        build_network(ModelConfig(name="timm/resnet18"), InputShape(0, 0, 3, (4,), "float32"))


def test_options_of_timm_are_searched_by_their_names() -> None:
    content = {"model": {"name": "timm/vit_tiny", "options": {"depth": 3}}}
    assert parse_params({**content, "search": {"parameters": {"model.options.depth": [2, 4]}}}).model.options == {"depth": 3}


def test_networks_of_timm_itself() -> None:
    pytest.importorskip("timm")
    network = build_network(ModelConfig(name="timm/resnet18"), SHAPE)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
