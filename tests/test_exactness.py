"""Laws 1 and 2 over many random cases: any loss, any size, any cut, dropout on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bigstep import Accumulator, losses
from bigstep.step.exactness import check_cuts
from oracles import keyed_gradients, relative_error
from strategies import sizes

CLASSES = 5
WEIGHT = torch.tensor([0.2, 0.7, 1.0, 3.0, 5.0]).double()
Case = tuple[Any, Callable[[Tensor, Any], Tensor], Callable[[int, torch.Generator], Any]]


def _model(norm: str) -> nn.Module:
    torch.manual_seed(0)
    layer: nn.Module = nn.GroupNorm(2, 6) if norm == "group" else nn.LayerNorm([6, 4, 4])
    layers = (nn.Conv2d(2, 6, 3), layer, nn.ReLU(), nn.Dropout2d(0.2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(96, CLASSES))
    return nn.Sequential(*layers).double()


def _labels(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, CLASSES, (count,), generator=generator)


def _some_ignored(count: int, generator: torch.Generator) -> Tensor:
    labels = _labels(count, generator)
    labels[torch.rand(count, generator=generator) < 0.4] = -100
    labels[0] = 1
    return labels


def _soft(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, CLASSES, dtype=torch.float64, generator=generator).softmax(1)


def _per_sample(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(outputs, targets[0], reduction="none"), targets[1]


def _weighted_mean(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    each, weights = _per_sample(outputs, targets)
    return (each * weights).sum() / weights.sum()


CASES: dict[str, Case] = {
    f"cross entropy {weight is not None} {smoothing}": (
        losses.CrossEntropy(weight, label_smoothing=smoothing),
        lambda o, t, weight=weight, smoothing=smoothing: F.cross_entropy(o, t, weight=weight, label_smoothing=smoothing),
        _some_ignored,
    )
    for weight in (None, WEIGHT)
    for smoothing in (0.0, 0.2)
} | {
    "soft targets": (losses.CrossEntropy(WEIGHT), lambda o, t: F.cross_entropy(o, t, weight=WEIGHT), _soft),
    "multi-label": (
        losses.BinaryCrossEntropy(pos_weight=WEIGHT),
        lambda o, t: F.binary_cross_entropy_with_logits(o, t, pos_weight=WEIGHT),
        lambda count, generator: (_soft(count, generator) > 0.2).double(),
    ),
    "regression": (losses.MeanSquaredError(), F.mse_loss, _soft),
    "per sample": (
        _per_sample,
        _weighted_mean,
        lambda count, generator: (_labels(count, generator), torch.rand(count, generator=generator).double() + 0.1),
    ),
}


@pytest.mark.slow
@settings(max_examples=600)
@given(st.sampled_from(sorted(CASES)), sizes, sizes, st.sampled_from(["group", "layer"]), st.integers(0, 2**31))
def test_the_accumulated_gradient_is_exact(name: str, total: int, micro: int, norm: str, seed: int) -> None:
    loss, mean, make = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(total, 2, 6, 6, dtype=torch.float64, generator=generator)
    targets = make(total, generator)
    model = _model(norm)
    expected, value = keyed_gradients(model, seed, 11, mean, inputs, targets)
    result = Accumulator(model, loss, micro_batch_size=micro, seed=seed).backward(inputs, targets, step=11)
    assert relative_error(model, expected) <= 1e-12
    torch.testing.assert_close(result.loss, value, rtol=1e-11, atol=1e-14)


class TiedModules(nn.Module):
    """Two modules own one matrix, and a number is complex."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 8), nn.Linear(8, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.turn = nn.Parameter(torch.ones(8, dtype=torch.complex128))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head((self.embedding(tokens) * self.turn).real)


def test_a_matrix_of_two_modules_and_a_complex_parameter_are_compared() -> None:
    torch.manual_seed(0)
    tokens = torch.arange(20) % 5
    found = check_cuts(TiedModules().double(), losses.CrossEntropy(), tokens, tokens.flip(0), (3, 20))
    assert {item.name for item in found} == {"", "embedding", "head"}
    assert all(item.is_exact for item in found)
