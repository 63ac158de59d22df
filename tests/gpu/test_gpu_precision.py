"""Autocast, and float16's scale: the scaled gradient is the same gradient, and a step that overflows is dropped."""

from collections.abc import Callable

import pytest
import torch

from bigstep import Accumulator, losses
from gpu.gpu_cases import batch, build, distance, flat

Record = Callable[[str, object], None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_a_scaled_gradient_is_that_of_one_pass_up_to_rounding(
    dtype: torch.dtype, device: torch.device, record_property: Record
) -> None:
    model = build("convolutions", device, torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=dtype == torch.float16)
    images, labels = batch(24, torch.float32)
    Accumulator(model, losses.CrossEntropy(), micro_batch_size=24).backward(images, labels)
    expected = flat(model)
    optimizer.zero_grad()
    options = {"autocast": dtype, "scaler": scaler}
    Accumulator(model, losses.CrossEntropy(), micro_batch_size=7, **options).backward(images, labels)
    scaler.unscale_(optimizer)
    error = distance(flat(model), expected)
    record_property("error", f"{error:.1e}")
    assert error <= 0.05
    scaler.step(optimizer)
    scaler.update()
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_step_that_overflows_changes_nothing_but_the_scale(device: torch.device) -> None:
    model = build("convolutions", device, torch.float32)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**60)
    Accumulator(model, losses.CrossEntropy(), micro_batch_size=7, autocast=torch.float16, scaler=scaler).backward(
        *batch(24, torch.float32)
    )
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**59
    assert all(map(torch.equal, before, model.parameters()))
