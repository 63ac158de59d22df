"""Predicted bytes against what the allocator counts, and running out of memory for real."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from bigstep import Accumulator, losses
from bigstep.memory.measurement import peak_growth
from bigstep.memory.prediction import predict_memory
from bigstep.training.out_of_memory_guard import MemoryExhaustedError, OutOfMemoryGuard
from gpu.gpu_cases import batch, build, distance, flat

Record = Callable[[str, object], None]
SIZE = 64
MODELS = (
    "shufflenet_v2_x1_0",
    "resnet18",
    "resnet50",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
    "densenet121",
    "vgg11_bn",
    "regnet_y_400mf",
    "squeezenet1_1",
)
LIMIT = 256 * 2**20


def _network(name: str) -> nn.Module:
    options = {"image_size": SIZE} if name.startswith("vit") else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    return network.train()


@pytest.mark.parametrize("name", MODELS if torch.cuda.is_available() else MODELS[:1])
def test_memory_is_predicted(name: str, device: torch.device, record_property: Record) -> None:
    if device.type == "cpu" and name != MODELS[0]:
        pytest.skip("docs/memory.md has the CPU's")
    micro = 32 if device.type == "cuda" else 2

    def run() -> None:
        model = _network(name).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)
        images, labels = torch.randn(micro, 3, SIZE, SIZE, device=device), torch.zeros(micro, dtype=torch.int64, device=device)
        for _ in range(2):
            optimizer.zero_grad()
            for _ in range(2):
                loss = F.cross_entropy(model(images), labels, reduction="sum") / micro
                loss.backward()
                del loss
            optimizer.step()

    gc.collect()
    measured = peak_growth(run, device)
    predicted = predict_memory(_network(name).to(device), (3, SIZE, SIZE), micro).peak_bytes
    record_property("predicted MB", f"{predicted / 1e6:.1f}")
    record_property("measured MB", f"{measured / 1e6:.1f}")
    record_property("error", f"{predicted / measured - 1:+.1%}")
    lowest, highest = (-0.01, 0.01) if device.type == "cpu" else (-0.5, 0.1)  # a GPU's libraries have workspaces of their own
    assert lowest <= predicted / measured - 1 <= highest


class Hungry(nn.Module):
    """Needs memory for each sample that it sees at once; as much as no machine has from ``limit`` samples on the CPU."""

    def __init__(self, inner: nn.Module, limit: int) -> None:
        super().__init__()
        self.inner, self.limit = inner, limit

    def forward(self, images: Tensor) -> Tensor:
        bytes_each = 24 * 2**20 if images.is_cuda else 2**56
        if images.is_cuda or len(images) >= self.limit:
            torch.empty(bytes_each * len(images), dtype=torch.uint8, device=images.device)
        found: Tensor = self.inner(images)
        return found


@pytest.fixture
def little_memory(device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + LIMIT) / total, device)
    yield
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.usefixtures("little_memory")
def test_out_of_memory_leaves_nothing_and_half_the_size_fits(device: torch.device, record_property: Record) -> None:
    model, guard, (images, labels) = Hungry(build("convolutions", device, dropout=0.3), 16), OutOfMemoryGuard(device), batch(40)
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=40, seed=1, self_check=False)
    accumulator.backward(images[:2], labels[:2], step=9)
    first = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    held, sizes = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0, []
    while True:
        sizes.append(accumulator.micro_batch_size)
        try:
            guard.call(lambda: accumulator.backward(images, labels, step=0))
            break
        except MemoryExhaustedError:
            pass
        assert all(torch.equal(a, p.grad) for a, p in zip(first, model.parameters(), strict=True) if p.grad is not None)
        if device.type == "cuda":
            assert torch.cuda.memory_allocated(device) <= held + 2**25  # workspaces of libraries
        accumulator.micro_batch_size = -(-accumulator.micro_batch_size // 2)
    guard.close()
    record_property("micro-batch sizes tried", ", ".join(map(str, sizes)))
    assert len(sizes) > 2
    halved = flat(model)
    small = build("convolutions", device, dropout=0.3)
    other = Accumulator(small, losses.CrossEntropy(), micro_batch_size=sizes[-1], seed=1)
    other.backward(images[:2], labels[:2], step=9)
    other.backward(images, labels, step=0)
    assert distance(halved, flat(small)) <= 1e-12
