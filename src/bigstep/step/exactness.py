"""Compare accumulated gradients with those of one pass over the whole batch, layer by layer."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigstep.step.accumulate import Accumulator
from bigstep.step.keyed_randomness import KeyedRandomness
from bigstep.step.losses import Loss
from bigstep.step.nested_tensors import call_model, num_samples

__all__ = ["EXACT", "LayerCheck", "check_cuts"]

EXACT = 1e-10  # in float64 rounding stays far below, any mistake far above
FLOOR = 1e-6  # of the whole gradient's norm: a layer whose true gradient is zero is judged against this


@dataclass(frozen=True)
class LayerCheck:
    """One layer: its name and class, and for each cut the relative error of its gradients."""

    name: str
    kind: str
    errors: tuple[float, ...]

    @property
    def is_exact(self) -> bool:
        """Whether no cut is off by more than rounding."""
        return max(self.errors) <= EXACT


def check_cuts(
    model: nn.Module, loss: Loss, inputs: Any, targets: Any, cuts: Sequence[int], *, seed: int | None = None
) -> tuple[LayerCheck, ...]:
    """Accumulate one batch in micro-batches of each size in ``cuts``, and compare with one pass of torch over all of it.

    Args:
        model: in float64, in the mode in which it is trained; its gradients and buffers are as before afterwards.
        loss: one of :mod:`bigstep.losses`.
        inputs: of the effective batch.
        targets: of the effective batch.
        cuts: micro-batch sizes.
        seed: keys random calls; None lets each pass draw other numbers, so that no comparison holds if the model draws.

    Returns:
        Every layer that has parameters of its own, in the model's order.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with _gradients_aside(model):
        reference = _whole_pass(model, loss, inputs, targets, seed)
        _restore(model, buffers)
        found = []
        for cut in cuts:
            Accumulator(model, loss, micro_batch_size=cut, seed=seed).backward(inputs, targets, step=0)
            found.append(_take(model))
            _restore(model, buffers)
    norm = sum(float(g.square().sum()) for g in reference.values()) ** 0.5
    return tuple(
        LayerCheck(name, type(module).__name__, tuple(_error(module, name, other, reference, FLOOR * norm) for other in found))
        for name, module in model.named_modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
    )


def _whole_pass(model: nn.Module, loss: Loss, inputs: Any, targets: Any, seed: int | None) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    calls: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if seed is not None:
        keyed = KeyedRandomness(model, seed)
        calls = keyed.step(0, keyed.sites(inputs, contextlib.nullcontext), device)
    with calls as step:
        if step is not None:
            step.begin_forward(torch.arange(num_samples(inputs)))
        value = loss.sum(call_model(model, inputs), targets) / loss.weight(targets)
        if step is not None:
            step.begin_backward()
        value.backward()  # type: ignore[no-untyped-call] # torch's
    return _take(model)


def _take(model: nn.Module) -> dict[str, Tensor]:
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    return gradients


def _error(module: nn.Module, name: str, found: dict[str, Tensor], reference: dict[str, Tensor], floor: float) -> float:
    names = [f"{name}.{key}" if name else key for key, p in module.named_parameters(recurse=False) if p.requires_grad]
    difference = sum(float((found[key] - reference[key]).square().sum()) for key in names) ** 0.5
    size: float = max(sum(float(reference[key].square().sum()) for key in names) ** 0.5, floor, 1e-300)
    return float(difference / size)


@torch.no_grad()
def _restore(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


@contextlib.contextmanager
def _gradients_aside(model: nn.Module) -> Iterator[None]:
    earlier = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(model.parameters(), earlier, strict=True):
            parameter.grad = gradient
