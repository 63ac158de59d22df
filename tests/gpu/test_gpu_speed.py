"""Images per second of accumulated steps against the bare loop, and against peers where they are installed."""

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from bigstep import Accumulator, losses
from gpu.gpu_cases import build

Record = Callable[[str, object], None]
Step = Callable[[], object]
CASES = {"resnet18": (64, 32, 4), "mobilenet_v3_small": (128, 32, 4), "vit_b_16": (64, 32, 4)}  # pixels, m, A


def _case(name: str, device: torch.device) -> tuple[Callable[[], nn.Module], int, Tensor, Tensor]:
    size, micro, steps = CASES[name] if device.type == "cuda" else (8, 4, 2)

    def model() -> nn.Module:
        if device.type == "cpu":
            return build("convolutions", device, torch.float32)
        options = {"image_size": size} if name.startswith("vit") else {}
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10, **options).to(device)
        return network.eval()  # BatchNorm and dropout are not what is measured

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(micro * steps, 3, size, size, generator=generator).to(device)
    return model, micro, images, torch.arange(micro * steps, device=device) % 5


def _bare(model: nn.Module, micro: int, images: Tensor, labels: Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        for part, targets in zip(images.split(micro), labels.split(micro), strict=True):
            (F.cross_entropy(model(part), targets, reduction="sum") / len(images)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _ours(model: nn.Module, micro: int, images: Tensor, labels: Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=micro)

    def step() -> None:
        accumulator.backward(images, labels)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _accelerate(model: nn.Module, micro: int, images: Tensor, labels: Tensor) -> Step:
    from accelerate import Accelerator

    accelerator = Accelerator(gradient_accumulation_steps=len(images) // micro, cpu=not images.is_cuda)
    wrapped, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-6))

    def step() -> None:
        for part, targets in zip(images.split(micro), labels.split(micro), strict=True):
            with accelerator.accumulate(wrapped):
                accelerator.backward(F.cross_entropy(wrapped(part), targets))
                optimizer.step()
                optimizer.zero_grad()

    return step


def _fabric(model: nn.Module, micro: int, images: Tensor, labels: Tensor) -> Step:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cuda" if images.is_cuda else "cpu", devices=1)
    wrapped, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1e-6))

    def step() -> None:
        for part, targets in zip(images.split(micro), labels.split(micro), strict=True):
            fabric.backward(F.cross_entropy(wrapped(part), targets, reduction="sum") / len(images))
        optimizer.step()
        optimizer.zero_grad()

    return step


PEERS = {"accelerate": ("accelerate", _accelerate), "Lightning Fabric": ("lightning", _fabric)}


def _rate(step: Step, count: int, device: torch.device) -> float:
    seconds = 0.5 if device.type == "cuda" else 0.01
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or done < 2:
        step()
        done += count
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return done / (time.perf_counter() - started)


@pytest.mark.parametrize("name", CASES)
def test_accumulated_steps_are_nearly_as_fast_as_the_bare_loop(
    name: str, device: torch.device, record_property: Record
) -> None:
    model, micro, images, labels = _case(name, device)
    makers = {"bare loop": _bare, "again": _bare, "bigstep": _ours}
    makers |= {peer: make for peer, (module, make) in PEERS.items() if find_spec(module) is not None}
    steps = {peer: make(model(), micro, images, labels) for peer, make in makers.items()}
    for step in steps.values():
        step()
    rounds = [{peer: _rate(step, len(images), device) for peer, step in steps.items()} for _ in range(5)]
    ratios = {peer: statistics.median(found[peer] / found["bare loop"] for found in rounds) for peer in steps}
    record_property("bare loop, images/s", f"{statistics.median(found['bare loop'] for found in rounds):,.0f}")
    for peer in list(steps)[1:]:
        record_property("bare loop against itself" if peer == "again" else peer, f"{ratios[peer]:.2f}")
    assert ratios["bigstep"] > (0.8 if device.type == "cuda" else 0.01)
