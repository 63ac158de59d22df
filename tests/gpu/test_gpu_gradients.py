"""Accumulated gradients against one pass over the whole batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bigstep import Accumulator, losses
from gpu.gpu_cases import KINDS, batch, build, distance, flat

Record = Callable[[str, object], None]
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-5}
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0])


@pytest.mark.parametrize("dtype", BOUNDS, ids=["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_one_pass(kind: str, dtype: torch.dtype, device: torch.device, record_property: Record) -> None:
    worst = 0.0

    @settings(max_examples=20 if device.type == "cuda" else 5, deadline=None, derandomize=True, database=None)
    @given(count=st.integers(2, 23), micro=st.integers(1, 23), on_device=st.booleans(), options=st.integers(0, 2))
    def check(count: int, micro: int, on_device: bool, options: int) -> None:
        nonlocal worst
        model, (images, labels) = build(kind, device, dtype), batch(count, dtype)
        chosen: dict[str, Any] = [{}, {"weight": WEIGHT.to(device, dtype)}, {"ignore_index": 1, "label_smoothing": 0.1}][
            options
        ]
        F.cross_entropy(model(images.to(device)), labels.to(device), **chosen).backward()
        expected = flat(model)
        model.zero_grad()
        if on_device:
            images, labels = images.to(device), labels.to(device)
        Accumulator(model, losses.CrossEntropy(**chosen), micro_batch_size=micro).backward(images, labels)
        worst = max(worst, distance(flat(model), expected))
        assert worst <= BOUNDS[dtype]

    check()
    record_property("largest error", f"{worst:.1e}")


def test_a_stream_of_micro_batches_is_the_batch(device: torch.device) -> None:
    images, labels = batch(17)
    found = []
    for streamed in (False, True):
        model = build("convolutions", device)
        accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=17)
        if streamed:
            accumulator.backward_stream(zip(images.split(5), labels.split(5), strict=True), weight=17.0)
        else:
            accumulator.backward(images, labels)
        found.append(flat(model))
    assert distance(found[1], found[0]) <= 1e-12


def test_the_noise_scale_has_the_norms_of_the_gradients(device: torch.device) -> None:
    model, (images, labels) = build("convolutions", device), batch(16)
    result = Accumulator(model, losses.CrossEntropy(), micro_batch_size=4, noise="every").backward(images, labels)
    assert result.noise is not None
    assert float(result.noise.whole) == pytest.approx(float(flat(model).square().sum()), rel=1e-12)
    assert result.loss.device.type == device.type
