"""A few samples in passes together, and the same samples cut otherwise: do gradients, loss, weight and buffers agree?

Nothing is left behind: gradients, buffers, attributes and random states are as before.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bigstep.errors import RandomnessError
from bigstep.randomness.keyed_randomness import KeyedStep, RandomCallsChangedError
from bigstep.step.gradient_sum import GradientSum, squared_norm
from bigstep.step.passes import Passes, PassSums, evaluating
from bigstep.step.preserved_state import ModuleState, preserved_state

__all__ = ["Comparison", "compare_passes"]

FLOOR = 1e-3  # of the whole gradient's norm: a leaf whose true gradient is zero is judged against this
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}  # of gradients; rounding stays below 5e-6 in torchvision's classifiers
COARSE_TOLERANCE = 0.1  # of gradients in 16 bits
TF32_TOLERANCE = 0.02  # of gradients in float32 on a GPU, whose convolutions round to 10 bits by default
TINY = 1e-300  # instead of 0, to divide by
FORWARD_SHARE = 0.1  # of the tolerance of gradients: the forward pass rounds less


@dataclass(frozen=True)
class Comparison:
    """What the comparison found."""

    error: float
    """Relative difference that exceeds its tolerance most: of a gradient, of the loss or of its weight."""
    where: str
    """What it is the gradient of, or ``the loss`` or ``its weight``."""
    agrees: bool
    """Whether that difference is rounding."""
    buffer: str | None
    """The first buffer that differs, if any."""
    loss_agrees: bool
    """Whether the loss and its weight are the same up to rounding, so that only gradients or buffers may differ."""
    has_gradient: bool
    """False where the gradient of the first cut is zero, so that little was compared."""

    @property
    def is_exact(self) -> bool:
        """Whether nothing differs beyond rounding."""
        return self.buffer is None and self.agrees


def compare_passes(passes: Passes, micro_batch_size: int) -> Comparison:
    """Compare passes over groups of samples with passes over the same samples in other groups.

    Each group is run once: the second cut's gradients are added to the first one's, negated, and what is left is compared.

    Raises:
        RandomnessError: a random call cannot be keyed.
        SingleSampleError: some groups are single samples, the model does not take them, and no micro-batch is one.
    """
    with evaluating(passes.model), preserved_state(*passes.modules) as state:
        for _ in range(2):
            try:
                return _compare(passes, passes.randomness(), state, takes_single=micro_batch_size == 1)
            except RandomCallsChangedError:
                state.restore()
                passes.probe_again()
    raise RandomnessError(
        "model: expected the same random calls in every micro-batch, got others; leave out the seed to draw natively"
    )


def _compare(passes: Passes, randomness: KeyedStep, state: ModuleState, *, takes_single: bool) -> Comparison:
    parameters = passes.parameters  # reentrant checkpointing hides leaves from the graph
    with GradientSum(parameters) as gradients:
        first = passes.run(passes.groups.together, randomness, gradients)
        norms = _norms(first.reached.union(parameters))
        gradients.scale(-1.0)
        buffers = state.changed_buffers()
        state.restore()
        second = passes.run(passes.groups.apart, randomness, gradients, takes_single=takes_single)
        rests = _norms(second.reached.union(parameters))
        other_buffers = state.changed_buffers()
    whole = sum(norm**2 for norm in norms.values()) ** 0.5
    tolerance = _tolerance((*(leaf.dtype for leaf in norms), first.dtype), passes.device)
    errors = _forward_errors(first, second, tolerance * FORWARD_SHARE)
    loss_agrees = all(error <= limit for error, limit, _ in errors)
    errors += [
        (rests[leaf] / max(norm, FLOOR * whole, TINY), tolerance, leaf)
        for leaf, norm in norms.items()
        if leaf in rests  # leaves that the second cut does not reach were made within the pass, as Wav2Vec2 does
    ]
    worst, limit, place = max(errors, key=lambda item: item[0] / item[1])
    where = place if isinstance(place, str) else f"the gradient of {passes.name_of(place)}"
    buffer = _first_difference(buffers, other_buffers, tolerance * FORWARD_SHARE)
    return Comparison(worst, where, worst <= limit, buffer, loss_agrees, whole > 0)


def _forward_errors(first: PassSums, second: PassSums, tolerance: float) -> list[tuple[float, float, str | Tensor]]:
    return [
        (_difference(first.losses, second.losses), tolerance, "the loss"),
        (_difference(first.weights, second.weights), tolerance, "its weight"),
    ]


def _norms(leaves: Iterable[Tensor]) -> dict[Tensor, float]:
    return {leaf: 0.0 if leaf.grad is None else float(squared_norm([leaf.grad])) ** 0.5 for leaf in leaves}


def _difference(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    size = max(sum(abs(value) for value in values) for values in (first, second))
    return abs(sum(first) - sum(second)) / max(size, TINY)


def _first_difference(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> str | None:
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second or not _close(first[name], second[name], tolerance):
            return name
    return None


def _close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    if first.shape != second.shape:
        return False
    if not first.is_floating_point():
        return torch.equal(first, second)
    same = (first == second) | (first.isnan() & second.isnan())  # such as -inf in a mask
    size = first.masked_fill(~first.isfinite(), 0.0).norm()
    return float((first - second).masked_fill(same, 0.0).norm()) <= tolerance * max(float(size), TINY)


def _tolerance(dtypes: Iterable[torch.dtype], device: torch.device) -> float:
    kinds = {dtype for dtype in dtypes if dtype.is_floating_point}
    found = [TOLERANCES.get(dtype, COARSE_TOLERANCE) for dtype in kinds]
    if device.type == "cuda" and torch.float32 in kinds:
        found.append(TF32_TOLERANCE)
    return max(found)
