"""`bigstep check` and what it rests on: exact where it should be, not where it cannot be, nothing left behind."""

from pathlib import Path

import pytest
import torch
from torch import nn

from bigstep import losses
from bigstep.commands.check import check, cut_sizes
from bigstep.config.params import parse_params
from bigstep.data.store import Store
from bigstep.errors import ModelError
from bigstep.project.paths import ProjectPaths, StagePaths
from bigstep.step.exactness import check_cuts


def _model(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), norm, nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 5)).double()


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(20, 6, dtype=torch.float64), torch.randint(0, 5, (20,))


def test_layers_that_treat_samples_apart_are_exact_for_every_cut() -> None:
    layers = check_cuts(_model(nn.LayerNorm(16)), losses.CrossEntropy(), *_batch(), (13, 7, 1), seed=3)
    assert [layer.name for layer in layers] == ["0", "1", "4"]
    assert all(layer.is_exact and max(layer.errors) < 1e-14 and len(layer.errors) == 3 for layer in layers)


def test_without_keys_dropout_makes_every_layer_below_it_inexact() -> None:
    layers = check_cuts(_model(nn.LayerNorm(16)), losses.CrossEntropy(), *_batch(), (7,))
    assert not any(layer.is_exact for layer in layers)


def test_batch_norm_is_inexact_and_its_buffers_and_gradients_are_as_before() -> None:
    model = _model(nn.BatchNorm1d(16))
    gradients = [torch.full_like(p, 7.0) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    layers = check_cuts(model, losses.CrossEntropy(), *_batch(), (10,), seed=0)
    assert not any(layer.is_exact for layer in layers)
    assert all(p.grad is g and bool((g == 7).all()) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize(("size", "micro", "cuts"), [(64, 16, (32, 16, 7, 1)), (8, 8, (7, 4, 2, 1)), (1, 4, (1,))])
def test_cuts_are_smaller_than_the_batch(size: int, micro: int, cuts: tuple[int, ...]) -> None:
    assert cut_sizes(size, micro) == cuts


def _check(digits: Store, folder: Path, **sections: dict[str, object]) -> int:
    folder.joinpath("data").mkdir()
    folder.joinpath("data", "prepared").symlink_to(digits.paths.manifest.parent)
    return check(ProjectPaths(folder), StagePaths(folder), parse_params(sections), 24)


def test_the_default_is_exact_in_every_layer(digits: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _check(digits, tmp_path, model={"width": 8, "dropout": 0.2}, train={"mixup_alpha": 0.2}) == 0
    printed = capsys.readouterr().out
    assert "exact in every layer, for every micro-batch size" in printed
    assert "off by" not in printed


def test_batch_norm_is_named_as_the_cause(digits: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections = {"model": {"width": 8, "norm": "batch", "ghost_batch_size": 8}, "hardware": {"micro_batch_size": 8}}
    assert _check(digits, tmp_path, **sections) == 1
    printed = capsys.readouterr().out
    assert "not exact: gradients depend on the micro-batch size" in printed
    assert "BatchNorm2d) normalises each micro-batch by its own mean and variance" in printed


def test_frozen_batch_norm_is_exact(digits: Store, tmp_path: Path) -> None:
    model = {"width": 8, "norm": "batch", "ghost_batch_size": 8, "batch_norm_statistics": "frozen"}
    assert _check(digits, tmp_path, model=model, hardware={"micro_batch_size": 8}) == 0


def test_a_model_that_cannot_take_a_single_sample_is_told_so(digits: Store, tmp_path: Path) -> None:
    model = {"name": "resnet18", "norm": "batch", "ghost_batch_size": 8}
    with pytest.raises(ModelError, match="BatchNorm needs at least two samples"):
        _check(digits, tmp_path, model=model, hardware={"micro_batch_size": 8})
