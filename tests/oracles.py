"""The naive implementations that the clever ones are compared with."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigstep.randomness.keyed_randomness import KeyedRandomness
from bigstep.step.preserved_state import preserved_state


def full_batch_gradients(model: nn.Module, mean_loss: Any, inputs: Any, targets: Any) -> tuple[list[Tensor], Tensor]:
    """One backward pass over the whole batch: gradients of the parameters, and the loss."""
    model.zero_grad()
    loss = mean_loss(call(model, inputs), targets)
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return gradients, loss.detach()


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def relative_error(model: nn.Module, expected: list[Tensor]) -> float:
    """‖g − g*‖ / ‖g*‖ over all parameters together."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    difference = sum(float(((a - b) ** 2).sum()) for a, b in zip(found, expected, strict=True)) ** 0.5
    return difference / sum(float((b**2).sum()) for b in expected) ** 0.5


def probe(model: nn.Module, inputs: Any) -> Callable[[int], None]:
    """What the random calls of a model are found with."""

    def run(count: int) -> None:
        size = len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)
        rows = [index % size for index in range(count)]
        with preserved_state(model):
            call(model, {key: value[rows] for key, value in inputs.items()} if isinstance(inputs, Mapping) else inputs[rows])

    return run


def keyed_gradients(
    model: nn.Module, seed: int, step: int, mean_loss: Any, inputs: Any, targets: Any
) -> tuple[list[Tensor], Tensor]:
    """One backward pass over the whole batch, with the masks that ``seed`` and ``step`` key."""
    keyed = KeyedRandomness(model, seed)
    first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
    calls = keyed.step(step, probe(model, inputs), first.device)
    with calls.micro_batch(torch.arange(len(first))):
        loss = mean_loss(call(model, inputs), targets)
        calls.end_forward()
        model.zero_grad()
        loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return gradients, loss.detach()
