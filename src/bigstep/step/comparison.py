"""A few samples in one pass, and the same samples cut: do gradients, loss, weight and buffers agree?

Random calls are keyed, autocast is off, and layers of BatchNorm's kind are in evaluation mode: they are known to depend on
the cut. Nothing is left behind: gradients, buffers, attributes and random states are as before.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.errors import RandomnessError
from bigstep.randomness.keyed_randomness import KeyedRandomness, KeyedStep, RandomCallsChangedError
from bigstep.step.batch_norm import batch_modules
from bigstep.step.batch_structure import BatchStructure
from bigstep.step.gradient_sum import find_leaves, squared_norm
from bigstep.step.micro_batch_loop import weighted_loss
from bigstep.step.preserved_state import preserved_gradients, preserved_state

__all__ = ["Comparison", "Passes", "SingleSampleError", "compare_passes", "parts_of"]

FLOOR = 1e-3  # of the whole gradient's norm: a leaf whose true gradient is zero is judged against this
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}  # of gradients; rounding stays below 5e-6 in torchvision's classifiers
COARSE_TOLERANCE = 0.1  # of gradients in 16 bits
TF32_TOLERANCE = 0.02  # of gradients in float32 on a GPU, whose convolutions round to 10 bits by default
TINY = 1e-300  # instead of 0, to divide by
NOTE = (
    "bigstep ran the model on {} samples of the batch, to check that they are treated apart; name inputs that all samples "
    "share in shared=, or leave the check out with self_check=False"
)
FORWARD_SHARE = 0.1  # of the tolerance of gradients: the forward pass rounds less


class SingleSampleError(Exception):
    """The model takes no single sample, though it takes more than one."""


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
    parts: tuple[slice, ...]
    loss_agrees: bool
    """Whether the loss and its weight are the same up to rounding, so that only gradients or buffers may differ."""
    has_gradient: bool
    """False where the gradient of the whole is zero, so that little was compared."""

    @property
    def is_exact(self) -> bool:
        """Whether nothing differs beyond rounding."""
        return self.buffer is None and self.agrees


@final
class Passes:
    """Passes over some samples of a batch, with keyed random numbers."""

    def __init__(
        self, model: nn.Module, loss: Any, batch: BatchStructure, indices: list[int], device: torch.device, seed: int
    ) -> None:
        """Use the samples ``indices`` of ``batch``."""
        self.model, self.loss, self.batch, self.indices, self.device = model, loss, batch, indices, device
        self.modules = tuple(module for module in (model, loss) if isinstance(module, nn.Module))
        self._keyed = KeyedRandomness(model, seed)
        self._fresh = False
        self._step = 0

    def randomness(self) -> KeyedStep:
        """Return the random numbers of a step.

        Raises:
            RandomnessError: a call cannot be keyed.
        """
        return self._keyed.step(self._step, self._run, self.device, fresh=self._fresh)

    def use(self, indices: list[int], step: int) -> None:
        """Use other samples, and the random numbers of another step."""
        self.indices, self._step = indices, step

    def probe_again(self) -> None:
        """Find the random calls again next time."""
        self._fresh = True

    def forward(self, part: slice) -> tuple[Tensor, float]:
        """Return the sum of weighted losses of these samples, and their weight."""
        return self._forward(self.indices[part])

    def name_of(self, leaf: Tensor) -> str:
        """Return a parameter's name."""
        for module in self.modules:
            for name, parameter in module.named_parameters():
                if parameter is leaf:
                    return name
        return "a tensor outside the model"

    def _run(self, count: int) -> None:
        with preserved_state(*self.modules):
            self._forward([self.indices[index % len(self.indices)] for index in range(count)])

    def _forward(self, indices: list[int]) -> tuple[Tensor, float]:
        inputs, targets = self.batch.take(indices, self.device)
        try:
            with torch.autocast(self.device.type, enabled=False):
                total, weights = weighted_loss(self.loss, self.batch.call(self.model, inputs), targets, len(indices))
        except Exception as error:
            if not isinstance(error, (RandomCallsChangedError, RandomnessError)):
                error.add_note(NOTE.format(len(indices)))
            raise
        return total, self.loss.weight(targets) if weights is None else float(weights.sum())


def compare_passes(passes: Passes, micro_batch_size: int) -> Comparison:
    """Compare one pass over all samples with passes over parts of them.

    Raises:
        RandomnessError: a random call cannot be keyed.
        SingleSampleError: the parts are single samples, and the model does not take them.
    """
    parts = parts_of(len(passes.indices))
    with evaluating(passes.model), preserved_state(*passes.modules) as state:
        for _ in range(2):
            try:
                randomness = passes.randomness()
                return _compare(passes, parts, randomness, state, may_fail=micro_batch_size > 1)
            except RandomCallsChangedError:
                state.restore()
                passes.probe_again()
    raise RandomnessError(
        "model: expected the same random calls in every micro-batch, got others; leave out the seed to draw natively"
    )


def parts_of(count: int) -> tuple[slice, ...]:
    """Cut samples into parts of unequal sizes where that is possible: two or three samples, or one of two."""
    size = 3 if count > 4 else 2 if count > 2 else 1
    return tuple(slice(begin, min(begin + size, count)) for begin in range(0, count, size))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put layers of BatchNorm's kind into evaluation mode within the block."""
    layers = list(batch_modules(model))
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True


def _compare(passes: Passes, parts: tuple[slice, ...], randomness: KeyedStep, state: Any, *, may_fail: bool) -> Comparison:
    everything = slice(0, len(passes.indices))
    total, weight = _forward(passes, randomness, everything)
    parameters = [parameter for module in passes.modules for parameter in module.parameters() if parameter.requires_grad]
    leaves = list(dict.fromkeys((*parameters, *find_leaves(total))))  # reentrant checkpointing hides leaves from the graph
    reached: set[Tensor] = set(parameters)
    with preserved_gradients(leaves):
        _backward(total, randomness)
        norms = _norms(leaves)
        for leaf in leaves:
            if leaf.grad is not None:
                leaf.grad = -leaf.grad  # what the parts add up to is added to this: the rest is their difference
        buffers = state.changed_buffers()
        state.restore()
        sums = [_both(passes, randomness, part, reached, may_fail=may_fail) for part in parts]
        rests = _norms(leaves)
        other_buffers = state.changed_buffers()
    whole = sum(norm**2 for norm in norms) ** 0.5
    tolerance = _tolerance(leaves, total, passes.device)
    forward_tolerance = tolerance * FORWARD_SHARE
    errors = [
        (_difference(float(total.detach()), [loss for loss, _ in sums]), forward_tolerance, "the loss"),
        (_difference(weight, [weight for _, weight in sums]), forward_tolerance, "its weight"),
    ]
    loss_agrees = all(error <= limit for error, limit, _ in errors)
    errors += [
        (rest / max(norm, FLOOR * whole, TINY), tolerance, f"the gradient of {passes.name_of(leaf)}")
        for leaf, norm, rest in zip(leaves, norms, rests, strict=True)
        if rest > 0 and leaf in reached  # others were made within the pass, as Wav2Vec2 does of its input
    ]
    worst, limit, where = max(errors, key=lambda item: item[0] / item[1])
    buffer = _first_difference(buffers, other_buffers, forward_tolerance)
    return Comparison(worst, where, worst <= limit, buffer, parts, loss_agrees, whole > 0)


def _forward(passes: Passes, randomness: KeyedStep, part: slice) -> tuple[Tensor, float]:
    with randomness.forward(torch.arange(len(passes.indices))[part]):
        return passes.forward(part)


def _backward(total: Tensor, randomness: KeyedStep) -> None:
    with randomness.backward(), torch.autocast(total.device.type, enabled=False):
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call] # torch's


def _both(passes: Passes, randomness: KeyedStep, part: slice, reached: set[Tensor], *, may_fail: bool) -> tuple[float, float]:
    try:
        total, weight = _forward(passes, randomness, part)
        reached.update(find_leaves(total))
        _backward(total, randomness)
    except (RandomCallsChangedError, RandomnessError):
        raise
    except Exception as error:
        if part.stop - part.start == 1 and may_fail:
            raise SingleSampleError(str(error).split("\n", 1)[0]) from error
        raise
    return float(total.detach()), weight


def _norms(leaves: Sequence[Tensor]) -> list[float]:
    return [0.0 if leaf.grad is None else float(squared_norm([leaf.grad])) ** 0.5 for leaf in leaves]


def _difference(whole: float, parts: list[float]) -> float:
    return abs(whole - sum(parts)) / max(sum(abs(part) for part in parts), abs(whole), TINY)


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
    return float((first - second).norm()) <= tolerance * max(float(first.norm()), TINY)


def _tolerance(leaves: Sequence[Tensor], total: Tensor, device: torch.device) -> float:
    found = [TOLERANCES.get(tensor.dtype, COARSE_TOLERANCE) for tensor in (*leaves, total) if tensor.is_floating_point()]
    if device.type == "cuda" and any(leaf.dtype == torch.float32 for leaf in leaves):
        found.append(TF32_TOLERANCE)
    return max(found)
