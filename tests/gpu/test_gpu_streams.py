"""Work in a stream of its own, and batches from pinned memory."""

import contextlib

import torch

from bigstep import Accumulator, losses
from bigstep.training.prefetch import prefetched
from gpu.gpu_cases import batch, build, flat


def test_a_step_in_a_stream_of_its_own_has_the_same_bits(device: torch.device) -> None:
    found = []
    for own in (False, True):
        model = build("convolutions", device, torch.float32, dropout=0.3)
        accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=5, seed=1)
        stream = torch.cuda.Stream(device) if own and device.type == "cuda" else None
        with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
            for step in range(5):
                accumulator.backward(*batch(19, torch.float32), step=step)
        if stream is not None:
            stream.synchronize()
        found.append(flat(model))
    assert torch.allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_batches_in_pinned_memory_give_the_same(device: torch.device) -> None:
    found = []
    for pinned in (False, True):
        images, labels = batch(19, torch.float32)
        if pinned and device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        model = build("convolutions", device, torch.float32)
        Accumulator(model, losses.CrossEntropy(), micro_batch_size=5).backward(images, labels)
        found.append(flat(model))
    assert torch.allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_batches_that_are_prepared_and_pinned_ahead_give_the_same(device: torch.device) -> None:
    batches = [batch(19 + step) for step in range(6)]

    def pin(item: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return (item[0].pin_memory(), item[1].pin_memory()) if device.type == "cuda" else item

    found = []
    for items in (iter(batches), prefetched(iter(batches), pin)):
        model = build("convolutions", device, dropout=0.3)
        accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=5, seed=1)
        for step, (images, labels) in enumerate(items):
            accumulator.backward(images, labels, step=step)
        found.append(flat(model))
    assert torch.allclose(found[0], found[1], rtol=1e-12, atol=1e-14)
