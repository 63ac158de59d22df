"""Passes of the self-check over groups of samples, forward and backward: each once, with sums that are compared afterwards.

Random calls are keyed, autocast is off, and layers of BatchNorm's kind are in evaluation mode: they are known to depend on
the cut.
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
from bigstep.step.gradient_sum import GradientSum, find_leaves
from bigstep.step.grouping import Groups
from bigstep.step.micro_batch_loop import weighted_loss
from bigstep.step.preserved_state import preserved_state

__all__ = ["PassSums", "Passes", "SingleSampleError", "evaluating"]

NOTE = (
    "bigstep ran the model on {} samples of the batch, to check that they are treated apart; name inputs that all samples "
    "share in shared=, or leave the check out with self_check=False"
)


class SingleSampleError(Exception):
    """The model takes no single sample, though it takes more than one."""


@dataclass(frozen=True)
class PassSums:
    """What passes over groups of samples came to, one by one; their gradients are in ``.grad``."""

    losses: tuple[float, ...]
    weights: tuple[float, ...]
    dtype: torch.dtype
    """Of the losses."""
    reached: frozenset[Tensor]
    """Leaves that the backward passes went to."""


@final
class Passes:
    """Runs a model and a loss on groups of samples of a batch."""

    def __init__(
        self, model: nn.Module, loss: Any, batch: BatchStructure, groups: Groups, device: torch.device, seed: int
    ) -> None:
        """Run ``groups`` of ``batch``."""
        self.model, self.loss, self.batch, self.groups, self.device = model, loss, batch, groups, device
        self.modules = tuple(module for module in (model, loss) if isinstance(module, nn.Module))
        self._positions = torch.arange(len(groups.samples))
        self._keyed = KeyedRandomness(model, seed)
        self._fresh = False

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters that learn, of model and loss."""
        return [parameter for module in self.modules for parameter in module.parameters() if parameter.requires_grad]

    def randomness(self) -> KeyedStep:
        """Return the random numbers of a step.

        Raises:
            RandomnessError: a call cannot be keyed.
        """
        return self._keyed.step(0, self._probe, self.device, fresh=self._fresh)

    def probe_again(self) -> None:
        """Find the random calls again next time."""
        self._fresh = True

    def forward(self, group: slice, randomness: KeyedStep) -> None:
        """Run a forward pass over these samples."""
        with randomness.micro_batch(self._positions, group):
            self._forward(self.groups.samples[group])

    def run(
        self, groups: Sequence[slice], randomness: KeyedStep, gradients: GradientSum, *, takes_single: bool = True
    ) -> PassSums:
        """Run each group forward and backward, and add their gradients up in ``gradients``.

        Raises:
            SingleSampleError: a group is a single sample, and the model does not take it; unless ``takes_single``.
        """
        losses, weights, reached, dtype = [], [], set[Tensor](), torch.get_default_dtype()
        for group in groups:
            with (
                _naming_single_samples(group, takes_single=takes_single),
                randomness.micro_batch(self._positions, group),
            ):
                total, weight = self._forward(self.groups.samples[group])
                randomness.end_forward()
                leaves = list(find_leaves(total))
                gradients.cover(leaves)
                reached.update(leaves)
                _backward(total)
            losses.append(float(total.detach()))
            weights.append(weight)
            dtype = total.dtype
        return PassSums(tuple(losses), tuple(weights), dtype, frozenset(reached))

    def name_of(self, leaf: Tensor) -> str:
        """Return a parameter's name."""
        for module in self.modules:
            for name, parameter in module.named_parameters():
                if parameter is leaf:
                    return name
        return "a tensor outside the model"

    def _probe(self, count: int) -> None:
        samples = self.groups.samples
        with preserved_state(*self.modules):
            self._forward([samples[index % len(samples)] for index in range(count)])

    def _forward(self, samples: Sequence[int]) -> tuple[Tensor, float]:
        inputs, targets = self.batch.take(list(samples), self.device)
        try:
            with torch.autocast(self.device.type, enabled=False):
                total, weights = weighted_loss(self.loss, self.batch.call(self.model, inputs), targets, len(samples))
        except Exception as error:
            if not isinstance(error, (RandomCallsChangedError, RandomnessError)):
                error.add_note(NOTE.format(len(samples)))
            raise
        return total, self.loss.weight(targets) if weights is None else float(weights.sum())


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


@contextlib.contextmanager
def _naming_single_samples(group: slice, *, takes_single: bool) -> Iterator[None]:
    try:
        yield
    except (RandomCallsChangedError, RandomnessError):
        raise
    except Exception as error:
        if group.stop - group.start == 1 and not takes_single:
            raise SingleSampleError(str(error).split("\n", 1)[0]) from error
        raise


def _backward(total: Tensor) -> None:
    with torch.autocast(total.device.type, enabled=False):
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call] # torch's
