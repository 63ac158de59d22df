"""Compare accumulated gradients with those of one pass over the whole batch, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigstep.randomness.keyed_randomness import KeyedRandomness, NativeRandomness, StepRandomness
from bigstep.step.accumulate import Accumulator
from bigstep.step.batch_structure import BatchStructure
from bigstep.step.loss_arguments import resolve_loss
from bigstep.step.micro_batch_loop import weighted_loss
from bigstep.step.preserved_state import preserved_gradients, preserved_state

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
    model: nn.Module,
    loss: Any,
    inputs: Any,
    targets: Any,
    cuts: Sequence[int],
    *,
    seed: int | None = None,
    shared: Sequence[str | int] = (),
) -> tuple[LayerCheck, ...]:
    """Accumulate one batch in micro-batches of each size in ``cuts``, and compare with one pass of torch over all of it.

    Args:
        model: in float64, in the mode in which it is trained; its gradients and buffers are as before afterwards.
        loss: as for :class:`bigstep.Accumulator`.
        inputs: of the effective batch.
        targets: of the effective batch.
        cuts: micro-batch sizes.
        seed: keys random calls; None lets each pass draw other numbers, so that no comparison holds if the model draws.
        shared: inputs that all samples share, as for :class:`bigstep.Accumulator`.

    Returns:
        Every layer that has parameters of its own, in the model's order.
    """
    loss = resolve_loss(loss)
    with preserved_gradients(model.parameters()):
        with preserved_state(model):
            reference = _whole_pass(model, loss, BatchStructure(inputs, targets, shared), seed)
        found = []
        for cut in cuts:
            with preserved_state(model):
                accumulator = Accumulator(model, loss, micro_batch_size=cut, seed=seed, shared=shared, self_check=False)
                accumulator.backward(inputs, targets, step=0)
                found.append(_take(model))
    norm = sum(_square(g) for g in reference.values()) ** 0.5
    return tuple(
        LayerCheck(name, type(module).__name__, tuple(_error(module, name, other, reference, FLOOR * norm) for other in found))
        for name, module in model.named_modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
    )


def _whole_pass(model: nn.Module, loss: Any, batch: BatchStructure, seed: int | None) -> dict[str, Tensor]:
    device, count = next(model.parameters()).device, batch.num_samples

    def forward(indices: list[int]) -> Tensor:
        part_inputs, part_targets = batch.take(indices, device)
        total, weights = weighted_loss(loss, batch.call(model, part_inputs), part_targets, len(indices))
        return total / (loss.weight(part_targets) if weights is None else weights.sum())

    randomness: StepRandomness = NativeRandomness()
    if seed is not None:
        keyed = KeyedRandomness(model, seed)

        def run(size: int) -> None:
            with preserved_state(model):
                forward([index % count for index in range(size)])

        randomness = keyed.step(0, run, device)
    with randomness.micro_batch(torch.arange(count)):
        value = forward(list(range(count)))
        randomness.end_forward()
        value.backward()  # type: ignore[no-untyped-call] # torch's
    return _take(model)


def _take(model: nn.Module) -> dict[str, Tensor]:
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters(remove_duplicate=False)
    }
    for parameter in model.parameters():
        parameter.grad = None
    return gradients


def _error(module: nn.Module, name: str, found: dict[str, Tensor], reference: dict[str, Tensor], floor: float) -> float:
    names = [f"{name}.{key}" if name else key for key, p in module.named_parameters(recurse=False) if p.requires_grad]
    difference = sum(_square(found[key] - reference[key]) for key in names) ** 0.5
    size: float = max(sum(_square(reference[key]) for key in names) ** 0.5, floor, 1e-300)
    return float(difference / size)


def _square(gradient: Tensor) -> float:
    return float(gradient.abs().square().sum())
