"""Dropout keyed by sample: the same in every cut and on every device, and nothing else draws other numbers."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bigstep import Accumulator, losses
from bigstep.errors import RandomnessError
from gpu.gpu_cases import KINDS, batch, build, distance, flat

Record = Callable[[str, object], None]


def _gradient(model: nn.Module, micro: int, step: int = 3) -> Tensor:
    Accumulator(model, losses.CrossEntropy(), micro_batch_size=micro, seed=7).backward(*batch(13), step=step)
    found = flat(model)
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_masks_do_not_depend_on_the_cut(kind: str, device: torch.device, record_property: Record) -> None:
    model = build(kind, device, dropout=0.4)
    whole = _gradient(model, 13)
    errors = [distance(_gradient(model, micro), whole) for micro in (7, 4, 1)]
    record_property("largest error", f"{max(errors):.1e}")
    assert max(errors) <= 1e-12
    assert distance(_gradient(model, 13, step=4), whole) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_the_cpu(kind: str, device: torch.device, record_property: Record) -> None:
    found = _gradient(build(kind, device, dropout=0.4), 5)
    error = distance(found, _gradient(build(kind, torch.device("cpu"), dropout=0.4), 5))
    record_property("error", f"{error:.1e}")
    assert error <= 1e-10


def test_layers_that_are_recomputed_have_their_masks_again(device: torch.device) -> None:
    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build("convolutions", device, dropout=0.4)

        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = checkpoint(self.inner, images, use_reentrant=False)
            return found

    expected = _gradient(build("convolutions", device, dropout=0.4), 13)
    assert distance(_gradient(Recomputed(), 4), expected) <= 1e-12


def test_generators_and_other_threads_draw_as_ever(device: torch.device) -> None:
    model, drawn, stop = build("convolutions", device, dropout=0.4), [], threading.Event()
    generator = torch.Generator(device).manual_seed(5)
    expected = torch.rand(200, device=device, generator=torch.Generator(device).manual_seed(5)).cpu()

    def draw() -> None:
        while not stop.is_set() and len(drawn) < 200:
            drawn.append(torch.rand(1, device=device, generator=generator))

    states = [torch.random.get_rng_state(), *(torch.cuda.get_rng_state_all() if device.type == "cuda" else [])]
    thread = threading.Thread(target=draw)
    thread.start()
    for micro in (13, 4, 1):
        _gradient(model, micro)
    thread.join(30)
    stop.set()
    now = [torch.random.get_rng_state(), *(torch.cuda.get_rng_state_all() if device.type == "cuda" else [])]
    assert all(map(torch.equal, states, now))
    assert torch.equal(torch.cat(drawn).cpu(), expected[: len(drawn)])


def test_what_cannot_be_keyed_is_refused_by_name(device: torch.device) -> None:
    class Shuffling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(192, 5)

        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = self.head(images.flatten(1)[:, torch.randperm(192, device=images.device)])
            return found

    model = Shuffling().to(device, torch.float64)
    with pytest.raises(RandomnessError, match="randperm"):
        _gradient(model, 4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_recurrent_dropout_is_keyed_or_refused(device: torch.device, record_property: Record) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.LSTM(24, 6, 2, dropout=0.3, batch_first=True), nn.Linear(6, 5)

        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = self.head(self.layer(images.flatten(2).reshape(len(images), 8, 24))[0][:, -1])
            return found

    torch.manual_seed(0)
    model = Recurrent().to(device, torch.float64)
    try:
        error = distance(_gradient(model, 4), _gradient(model, 13))
    except RandomnessError as refused:
        record_property("refused", str(refused).split(";")[0])
        assert device.type == "cuda"
    else:
        record_property("error", f"{error:.1e}")
        assert error <= 1e-12
