"""`bigstep check` and what it rests on: exact where it should be, not where it cannot be, nothing left behind."""

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bigstep
from bigstep import losses
from bigstep.commands.check import check, cut_sizes
from bigstep.config.params import parse_params
from bigstep.data.store import Store
from bigstep.errors import LossError, ModelError, RandomnessError
from bigstep.models.model_files import build_classifier
from bigstep.project.paths import ProjectPaths, StagePaths
from bigstep.step.exactness import check_cuts
from dvc_dependencies import ROOT


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


def _check(digits: Store, folder: Path, samples: int = 24, **sections: dict[str, object]) -> int:
    folder.joinpath("data").mkdir()
    folder.joinpath("data", "prepared").symlink_to(digits.paths.manifest.parent)
    return check(ProjectPaths(folder), StagePaths(folder), parse_params(sections), samples)


def test_a_loss_with_weights_is_compared_in_float64(digits: Store, tmp_path: Path) -> None:
    train = {"loss": {"MultiMarginLoss": {"weight": [float(number + 1) for number in range(10)]}}}
    assert _check(digits, tmp_path, model={"width": 4}, train=train) == 0


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


def test_the_readme_shows_what_the_command_prints(digits: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _check(digits, tmp_path, samples=32) == 0
    printed = _without_errors(capsys.readouterr().out)
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split("$ bigstep check\n")[1].split("```")[0]
    assert [line for line in _without_errors(shown).splitlines() if line not in printed.splitlines()] == ["..."]


def _without_errors(text: str) -> str:
    """The last digit of an error depends on the processor."""
    return re.sub(r" \d+e-1\d", " 1e-16", text)


class _Mixing(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden - hidden.mean(dim=0)


def test_a_coupled_layer_is_named_by_the_command(
    digits: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*args: Any, **kwargs: Any) -> nn.Module:
        classifier = build_classifier(*args, **kwargs)
        classifier.network = nn.Sequential(classifier.network, _Mixing())
        return classifier

    monkeypatch.setattr("bigstep.commands.check.build_classifier", build)
    assert _check(digits, tmp_path, model={"width": 8}) == 1
    printed = capsys.readouterr().out
    assert "because model: expected layers that treat samples apart, got 'network.1' (_Mixing), whose result" in printed
    assert "custom layer" not in printed


def test_random_numbers_without_keys_are_named_by_the_command(
    digits: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _check(digits, tmp_path, model={"width": 8, "dropout": 0.3}, train={"keyed_randomness": False}) == 1
    assert "because the model draws random numbers that are not keyed by sample" in capsys.readouterr().out


class _Margin(nn.Module):
    """A loss with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.centers, self.scale = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.ones(1))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.normalize(outputs) @ self.centers.T * self.scale, targets, reduction="none")


def _plain(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _infonce(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(targets)), reduction="none")


def _small(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), *layers, nn.Linear(16, 5))


def _floats() -> tuple[Tensor, Tensor]:
    inputs, targets = _batch()
    return inputs.float(), targets


@pytest.mark.parametrize(
    ("layer", "loss"),
    [
        (nn.LayerNorm(16), losses.CrossEntropy()),
        (nn.Dropout(0.3), nn.CrossEntropyLoss(weight=torch.tensor([0.2, 0.7, 1.0, 3.0, 5.0]))),
        (nn.Dropout(0.3), _plain),
        (nn.Tanh(), _Margin()),
        (nn.BatchNorm1d(16).eval(), _plain),
    ],
)
def test_a_model_and_loss_of_ones_own_are_exact_and_left_as_they_were(layer: nn.Module, loss: Any) -> None:
    model = _small(layer)
    parameters = [*model.parameters(), *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 7.0)
    gradients, modes = [p.grad for p in parameters], [module.training for module in model.modules()]
    batch = _floats()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = bigstep.check(model, loss, batch)
    assert found.is_exact
    assert found.reason == ""
    assert found.tolerance == 1e-10
    assert found.worst < 1e-12
    assert found.cuts == (10, 7, 5, 1)
    kinds = ["Linear", "LayerNorm", "Linear"] if isinstance(layer, nn.LayerNorm) else ["Linear", "Linear"]
    kinds += ["_Margin"] if isinstance(loss, _Margin) else ["BatchNorm1d"] if isinstance(layer, nn.BatchNorm1d) else []
    assert sorted(item.kind for item in found.layers) == sorted(kinds)
    assert all(p.grad is g and bool((g == 7).all()) for p, g in zip(parameters, gradients, strict=True))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("layer", "loss", "seed", "reason"),
    [
        (_Mixing(), _plain, 0, r"got '1' \(_Mixing\), whose result for a sample depends on the others"),
        (nn.Softmax(dim=0), losses.CrossEntropy(), 0, r"got '1' \(Softmax\)"),
        (nn.Tanh(), _infonce, 0, "loss: expected a sum over samples, each treated apart"),
        (nn.BatchNorm1d(16), _plain, 0, r"model: 1 \(BatchNorm1d\) normalises each micro-batch"),
        (nn.Dropout(0.5), _plain, None, "random numbers that are not keyed by sample"),
    ],
)
def test_what_is_not_exact_has_a_reason_with_a_name(layer: nn.Module, loss: Any, seed: int | None, reason: str) -> None:
    model = _small(layer)
    before = copy.deepcopy(model.state_dict())
    found = bigstep.check(model, loss, _floats(), seed=seed)
    assert not found.is_exact
    assert re.search(reason, found.reason)
    assert found.worst > 0.01
    assert found.reason in str(found)
    assert "0 (Linear)" in str(found)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_batch_norm_is_compared_where_it_takes_the_micro_batches() -> None:
    assert bigstep.check(_small(nn.BatchNorm1d(16)), _plain, _floats()).cuts == (10, 7, 5)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        bigstep.check(_small(nn.BatchNorm1d(16)), _plain, _floats(), cuts=(1,))


def test_statistics_that_move_are_found_though_gradients_are_exact() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(8, 5))
    inputs, targets = _floats()
    found = bigstep.check(model, _plain, (inputs[:, None], targets))
    assert found.worst < 1e-10
    assert "1 (InstanceNorm1d) keeps running statistics" in found.reason


def test_a_model_that_is_no_float64_is_checked_as_it_is() -> None:
    class Single(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs.float())

    found = bigstep.check(Single(6, 5), _plain, _floats(), cuts=(3,))
    assert found.is_exact
    assert found.tolerance == 1e-4
    assert 0 < found.worst < 1e-5
    assert [(layer.name, layer.kind) for layer in found.layers] == [("", "Single")]


def test_inputs_may_be_a_dictionary() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(9, 4), nn.Linear(4, 5)

        def forward(self, ids: Tensor, weight: Tensor) -> Tensor:
            return self.head((self.tokens(ids) * weight[..., None]).sum(dim=1))

    batch = {"ids": torch.randint(0, 9, (12, 6)), "weight": torch.rand(12, 6)}
    assert bigstep.check(Named(), _plain, (batch, torch.randint(0, 5, (12,)))).is_exact


class _Attention(nn.Module):
    """Takes a mask of a sequence's positions, which all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(1, 4), nn.Linear(4, 5)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        hidden = self.first(tokens)
        return self.head(((hidden @ hidden.transpose(1, 2) + mask).softmax(-1) @ hidden).mean(1))


@pytest.mark.parametrize("as_mapping", [False, True])
def test_inputs_that_all_samples_share_are_named(as_mapping: bool) -> None:
    """As many positions as samples: the mask would be cut otherwise, without a word."""
    torch.manual_seed(0)
    tokens, mask = torch.randn(12, 12, 1), torch.randn(12, 12)
    inputs = {"tokens": tokens, "mask": mask} if as_mapping else (tokens, mask)
    batch = (inputs, torch.randint(0, 5, (12,)))
    found = bigstep.check(_Attention(), _plain, batch, shared=["mask" if as_mapping else 1])
    assert found.is_exact
    assert found.worst < 1e-12
    with pytest.raises(RuntimeError, match="must match the size"):
        bigstep.check(_Attention(), _plain, batch)


@pytest.mark.parametrize(
    ("model", "loss", "batch", "options", "kind", "message"),
    [
        (nn.Linear(6, 5), _plain, torch.ones(4, 6), {}, ValueError, r"batch: expected \(inputs, targets\), got Tensor"),
        (nn.Linear(6, 5), _plain, (torch.ones(1, 6), torch.zeros(1).long()), {}, ValueError, "at least two samples, got 1"),
        (nn.Linear(6, 5), _plain, (torch.ones(4, 6), torch.zeros(3).long()), {}, ValueError, "same number of samples"),
        (
            nn.Linear(6, 5),
            _plain,
            (torch.ones(4, 6), torch.zeros(4).long()),
            {"cuts": (9,)},
            ValueError,
            r"from 1 to 4, got \[9\]",
        ),
        (nn.Linear(6, 5), _plain, (torch.ones(4, 6), torch.zeros(4).long()), {"cuts": ()}, ValueError, "pass at least one"),
        (
            nn.Linear(6, 5),
            losses.CrossEntropy(),
            (torch.ones(4, 6), torch.full((4,), -100)),
            {},
            ValueError,
            "two samples with a",
        ),
        (
            nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)),
            _plain,
            (torch.ones(3, 6), torch.zeros(3).long()),
            {},
            ValueError,
            "cuts: expected micro-batches that the model takes, got the error 'Expected more than 1 value per channel",
        ),
        (nn.Tanh(), _plain, (torch.ones(4, 6), torch.zeros(4).long()), {}, ValueError, "model: expected parameters"),
        (nn.Linear(6, 5), 3, (torch.ones(4, 6), torch.zeros(4).long()), {}, TypeError, "loss: expected a bigstep loss"),
        (nn.Linear(6, 5), F.cross_entropy, (torch.ones(4, 6), torch.zeros(4).long()), {}, LossError, "loss"),
        (
            nn.Sequential(nn.Linear(6, 5), nn.RReLU()),
            _plain,
            (torch.ones(4, 6), torch.zeros(4).long()),
            {},
            RandomnessError,
            "rrelu",
        ),
        (nn.Linear(3, 5), _plain, (torch.ones(4, 6), torch.zeros(4).long()), {}, RuntimeError, "shapes cannot be multiplied"),
    ],
)
def test_what_cannot_be_checked_is_refused(
    model: nn.Module, loss: Any, batch: Any, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        bigstep.check(model, loss, batch, **options)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "code",
    [
        "import bigstep.commands.check; from bigstep import check; assert callable(check)",
        "from bigstep import check; import bigstep.commands.check, bigstep; assert bigstep.check is check",
        "import bigstep.step.checking, bigstep; assert bigstep.check is bigstep.step.checking.check",
    ],
)
def test_the_function_and_the_command_do_not_get_in_each_others_way(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_documented_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8").partition("## Check your own model")[2]
    code, printed = re.findall(r"```(?:python|text)\n(.*?)```", text, re.DOTALL)
    exec(code, {})  # the page is the project's own
    assert capsys.readouterr().out == printed
