"""C8: models compiled by torch.compile, with dropout and a seed: exact, or refused where compiled code draws its own."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor, nn

from bigstep import Accumulator, losses
from bigstep.errors import ExactnessWarning, RandomnessError
from oracles import full_batch_gradients, keyed_gradients, relative_error

N, CUTS = 11, (11, 4, 3, 1)
OWN_NUMBERS = "got compiled code (by inductor), which draws its own numbers; compile with options={'fallback_random': True}"
needs_inductor = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, and there is no g++")
inductors_warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._inductor.config.patch(compile_threads=1):
        yield


def _model(dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 8), nn.Dropout(dropout), nn.Linear(8, 4))
    return nn.Sequential(*layers).double()


def _batch() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(N) % 4


def _check(cut: int, **options: Any) -> None:
    """Compare two steps of a compiled model, the second with all code compiled, with one pass of the same model."""
    expected, _ = keyed_gradients(_model(), 7, 2, F.cross_entropy, *_batch())
    model = torch.compile(_model(), **options)
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=cut, seed=7)
    for _ in range(2):
        accumulator.backward(*_batch(), step=2)
        assert relative_error(model, expected) <= 1e-12
        model.zero_grad()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_are_exact(backend: str, cut: int) -> None:
    _check(cut, backend=backend)


@needs_inductor
@inductors_warnings
@pytest.mark.slow
@pytest.mark.parametrize("cut", [4, 1])
def test_inductor_is_exact_where_it_leaves_random_numbers_to_torch(cut: int) -> None:
    _check(cut, options={"fallback_random": True})


@needs_inductor
@inductors_warnings
@pytest.mark.slow
@pytest.mark.parametrize("compiled_before", [False, True])
@pytest.mark.parametrize("cut", [4, 1])
def test_inductors_own_random_numbers_are_refused_by_name(cut: int, compiled_before: bool) -> None:
    model, (inputs, labels) = torch.compile(_model()), _batch()
    if compiled_before:
        for count in (2, 3, N):
            model(inputs[:count]).sum().backward()
        model.zero_grad()
    with pytest.raises(RandomnessError) as caught:
        Accumulator(model, losses.CrossEntropy(), micro_batch_size=cut, seed=7).backward(inputs, labels)
    assert OWN_NUMBERS in str(caught.value)
    assert all(parameter.grad is None for parameter in model.parameters())


@needs_inductor
@inductors_warnings
@pytest.mark.slow
def test_without_a_seed_inductors_numbers_are_its_own_and_the_check_is_left_out_with_a_warning() -> None:
    accumulator = Accumulator(torch.compile(_model()), losses.CrossEntropy(), micro_batch_size=4)
    with pytest.warns(ExactnessWarning, match="not checked whether gradients depend on micro_batch_size.*compiled code"):
        accumulator.backward(*_batch())


@needs_inductor
@inductors_warnings
@pytest.mark.slow
@pytest.mark.parametrize("cut", [4, 1])
def test_inductor_is_exact_where_nothing_is_drawn(cut: int) -> None:
    expected, _ = full_batch_gradients(_model(0.0), F.cross_entropy, *_batch())
    model = torch.compile(_model(0.0))
    for seed in (7, None):
        Accumulator(model, losses.CrossEntropy(), micro_batch_size=cut, seed=seed).backward(*_batch())
        assert relative_error(model, expected) <= 1e-12
        model.zero_grad()
