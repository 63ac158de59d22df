"""One effective batch, micro-batch by micro-batch: forward, backward, sums."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from operator import mul
from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.errors import LossError
from bigstep.randomness.keyed_randomness import StepRandomness
from bigstep.step.batch_norm import DeferredStatistics
from bigstep.step.batch_structure import BatchStructure
from bigstep.step.gradient_sum import GradientSum, find_leaves, squared_norm
from bigstep.step.losses import Loss, is_loss, sample_weights
from bigstep.step.noise_scale import NoiseSample
from bigstep.step.processes import exchange

__all__ = ["AccumulationSettings", "MicroBatch", "MicroBatchLoop", "PerSampleLoss", "weighted_loss"]

PerSampleLoss = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AccumulationSettings:
    """What stays the same from batch to batch; as the arguments of the accumulator."""

    model: nn.Module
    loss: Loss | PerSampleLoss
    autocast: torch.dtype | None
    scaler: torch.amp.GradScaler
    noise: str | None
    statistics: DeferredStatistics

    def forward_context(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward pass: autocast, where it is on."""
        return contextlib.nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)


@dataclass(frozen=True)
class MicroBatch:
    """A part of a batch, and the positions of the whole batch's samples in the effective batch."""

    batch: BatchStructure
    part: slice
    positions: Tensor

    @property
    def size(self) -> int:
        """The number of its samples."""
        return int(self.part.stop - self.part.start)


@final
class MicroBatchLoop:
    """Adds micro-batches up, each sum divided by ``divisor``: W where it is known beforehand, else N, and N / W at the end."""

    def __init__(
        self,
        settings: AccumulationSettings,
        gradients: GradientSum,
        device: torch.device,
        divisor: float,
        randomness: StepRandomness,
    ) -> None:
        """Start with nothing added."""
        self.settings = settings
        self.gradients = gradients
        self.device = device
        self.divisor = divisor
        self.randomness = randomness
        self.sizes: list[int] = []
        self.total = torch.zeros((), device=device, dtype=torch.float64)
        self.weight_sum = torch.zeros((), device=device, dtype=torch.float64)
        self._found: float | None = None
        self._norms = _NoiseNorms(settings, gradients, divisor, device)

    def add(self, micro_batch: MicroBatch, *, is_last: bool) -> None:
        """Run one micro-batch forward and backward; processes exchange gradients after the last, where their sums allow it."""
        with exchange(self.settings.model, now=is_last or self.gradients.leaves_in_parts):
            self._add(micro_batch)

    def _add(self, micro_batch: MicroBatch) -> None:
        settings, size = self.settings, micro_batch.size
        inputs, targets = micro_batch.batch.take(micro_batch.part, self.device)
        with self.randomness.micro_batch(micro_batch.positions, micro_batch.part):
            with settings.forward_context(self.device), settings.statistics.collect():
                outputs = micro_batch.batch.call(settings.model, inputs)
                loss_sum, weights = weighted_loss(settings.loss, outputs, targets, size)
            self.randomness.end_forward()
            del outputs
            if not self.sizes:
                self.gradients.cover(find_leaves(loss_sum))
            self._backward(loss_sum / self.divisor)
        if weights is not None:
            self.weight_sum += weights.double().sum()
        if settings.noise is not None:
            self._norms.add(micro_batch, weights, size)
        self.gradients.add()
        self.total += loss_sum.detach()
        self.sizes.append(size)

    def find_weight(self, weight: float) -> None:
        """Record the weight of the targets that were added, where the loss says it."""
        self._found = (self._found or 0.0) + weight

    def found_weight(self) -> float:
        """Return the weight of what was added, by the loss or from the forward passes."""
        return float(self.weight_sum) if self._found is None else self._found

    def noise_share(self) -> Tensor:
        """Return the noise of a process's share, shape ``(5,)``, for the sum over processes; zeros if it is not measured."""
        return torch.zeros(5) if self.settings.noise is None else self._norms.share()

    def unscaled(self) -> Tensor:
        """Return what undoes the scaler in a squared norm."""
        return self._norms.unscaled()

    def finish(self, weight: float | None) -> tuple[Tensor, float, NoiseSample | None]:
        """Set ``.grad`` to its final value; ``weight`` is W, or None if it is known from the forward passes only.

        Returns:
            The mean loss, W, and the norms for the noise scale.
        """
        weight = float(self.weight_sum) if weight is None else weight
        if weight == 0:
            return self.total * 0, 0.0, None
        self.gradients.scale(self.divisor / weight)
        noise = None if self.settings.noise is None else self._norms.sample(sum(self.sizes))
        self.gradients.finish()
        return self.total / weight, weight, noise

    def _backward(self, loss: Tensor) -> None:
        self.settings.scaler.scale(loss).backward()  # type: ignore[no-untyped-call] # torch's


@final
class _NoiseNorms:
    """Squared gradient norms of micro-batches that have a weight, and how many equal samples each is worth."""

    def __init__(self, settings: AccumulationSettings, gradients: GradientSum, divisor: float, device: torch.device) -> None:
        self._settings, self._gradients, self._divisor, self._device = settings, gradients, divisor, device
        self._sizes: list[float] = []
        self._norms: list[Tensor] = []
        self._weight = self._square = 0.0

    def add(self, micro_batch: MicroBatch, weights: Tensor | None, size: int) -> None:
        loss = self._settings.loss
        if weights is None:
            assert is_loss(loss)
            weights = sample_weights(loss, micro_batch.batch.take_targets(micro_batch.part), size)
        found = weights.tolist()
        weight, square = sum(found), sum(map(mul, found, found))
        self._weight += weight
        self._square += square
        if weight != 0 and (self._settings.noise == "every" or not self._norms):
            self._sizes.append(weight**2 / square)
            norm = squared_norm(self._gradients.latest())
            self._norms.append(norm * self.unscaled() * (self._divisor / weight) ** 2)
        elif weight != 0:
            self._sizes.append(weight**2 / square)

    def sample(self, num_samples: int) -> NoiseSample | None:
        if len(self._sizes) < 2:
            return None
        whole = squared_norm(self._gradients.current()) * self.unscaled()
        weighted = sum(size * norm for size, norm in zip(self._sizes, self._norms, strict=False))
        every = self._settings.noise == "every"
        sample = NoiseSample(
            tuple(self._sizes),
            self._weight**2 / self._square,
            num_samples,
            whole,
            None if every else self._norms[0],
            torch.as_tensor(weighted) if every else None,
        )
        return sample if sample.is_usable else None

    def share(self) -> Tensor:
        """Return 1, what the samples are worth, that times the squared norm of their mean gradient, and sums of weights."""
        if self._weight == 0:
            return torch.zeros(5)
        worth = self._weight**2 / self._square
        norm = squared_norm(self._gradients.current()) * self.unscaled() * (self._divisor / self._weight) ** 2
        return torch.tensor([1.0, worth, worth * float(norm), self._weight, self._square], dtype=torch.float64)

    def unscaled(self) -> Tensor:
        return self._settings.scaler.scale(torch.ones((), device=self._device)).double() ** -2


def weighted_loss(loss: Any, outputs: Any, targets: Any, size: int) -> tuple[Tensor, Tensor | None]:
    """Return the sum of weighted losses, and the weights where they come from the forward pass.

    Raises:
        LossError: a callable loss returned something else than one loss per sample.
    """
    if is_loss(loss):
        return loss.sum(outputs, targets), None
    losses, weights = _checked(loss(outputs, targets), size)
    return (losses * weights).sum(), weights.detach()


def _checked(returned: Any, size: int) -> tuple[Tensor, Tensor]:
    losses, weights = returned if isinstance(returned, tuple) else (returned, None)
    for name, values in (("losses", losses), ("weights", weights)):
        if values is not None and not (isinstance(values, Tensor) and tuple(values.shape) == (size,)):
            found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise LossError(
                f"loss: expected one of its {name} per sample, shape ({size},), got {found}; do not reduce over the batch"
            )
    if size > 1 and losses.stride() == (0,):
        raise LossError(
            f"loss: expected one loss per sample, got one value expanded to ({size},); do not reduce over the batch"
        )
    return losses, torch.ones(size, device=losses.device, dtype=losses.dtype) if weights is None else weights
