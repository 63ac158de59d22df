"""One effective batch, micro-batch by micro-batch: forward, backward, sums."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.errors import LossError
from bigstep.step.batch_norm import DeferredStatistics, collecting
from bigstep.step.gradient_sum import GradientSum, squared_norm
from bigstep.step.keyed_randomness import KeyedStep
from bigstep.step.losses import Loss
from bigstep.step.nested_tensors import call_model, cut_batch, num_samples
from bigstep.step.noise_scale import NoiseSample

__all__ = ["AccumulationSettings", "MicroBatch", "MicroBatchLoop", "PerSampleLoss"]

PerSampleLoss = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AccumulationSettings:
    """What stays the same from batch to batch; as the arguments of the accumulator."""

    model: nn.Module
    loss: Loss | PerSampleLoss
    autocast: torch.dtype | None
    scaler: torch.amp.GradScaler | None
    noise: str | None
    statistics: DeferredStatistics | None

    def forward_context(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward pass: autocast, where it is on."""
        return contextlib.nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)


@dataclass(frozen=True)
class MicroBatch:
    """Inputs and targets wherever they are, and the samples' positions in the effective batch."""

    inputs: Any
    targets: Any
    positions: Tensor


@final
class MicroBatchLoop:
    """Adds micro-batches up, each sum divided by ``divisor``: W where it is known beforehand, else N, and N / W at the end."""

    def __init__(
        self,
        settings: AccumulationSettings,
        gradients: GradientSum,
        device: torch.device,
        divisor: float,
        random_calls: KeyedStep | None,
    ) -> None:
        """Start with nothing added."""
        self.settings = settings
        self.gradients = gradients
        self.device = device
        self.divisor = divisor
        self.random_calls = random_calls
        self.sizes: list[int] = []
        self.total = torch.zeros((), device=device, dtype=torch.float64)
        self.weight_sum = torch.zeros((), device=device, dtype=torch.float64)
        self._norms: list[Tensor] = []  # |g_k|^2 of each micro-batch that was measured

    def add(self, part: MicroBatch) -> None:
        """Run one micro-batch forward and backward."""
        settings, size = self.settings, num_samples((part.inputs, part.targets))
        inputs, targets = (cut_batch(batch, slice(None), self.device) for batch in (part.inputs, part.targets))
        if self.random_calls is not None:
            self.random_calls.begin_forward(part.positions)
        with settings.forward_context(self.device), collecting(settings.statistics):
            loss_sum, weight = self._measure(call_model(settings.model, inputs), targets, size)
        if self.random_calls is not None:
            self.random_calls.begin_backward()
        self._backward(loss_sum / self.divisor)
        if settings.noise == "every" or (settings.noise == "first" and not self.sizes):
            self._note_norm(part, weight)
        self.gradients.add()
        self.total += loss_sum.detach()
        self.sizes.append(size)

    def finish(self, weight: float | None) -> tuple[Tensor, float, NoiseSample | None]:
        """Set ``.grad`` to its final value; ``weight`` is W, or None if it is known from the forward passes only.

        Returns:
            The mean loss, W, and the norms for the noise scale.
        """
        weight = float(self.weight_sum) if weight is None else weight
        if weight == 0:
            return self.total * 0, 0.0, None
        self.gradients.scale(self.divisor / weight)
        noise = self._noise()
        self.gradients.finish()
        return self.total / weight, weight, noise

    def _measure(self, outputs: Any, targets: Any, size: int) -> tuple[Tensor, Tensor | None]:
        loss = self.settings.loss
        if isinstance(loss, Loss):
            return loss.sum(outputs, targets), None
        losses, weights = _checked(loss(outputs, targets), size)
        weight = weights.detach().sum()
        self.weight_sum += weight
        return (losses * weights).sum(), weight

    def _backward(self, loss: Tensor) -> None:
        scaler = self.settings.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call] # torch's

    def _note_norm(self, part: MicroBatch, weight: Tensor | None) -> None:
        loss = self.settings.loss
        share = loss.weight(part.targets) if isinstance(loss, Loss) else weight
        assert share is not None
        self._norms.append(squared_norm(self.gradients.latest()) * self._unscaled() * (self.divisor / share) ** 2)

    def _noise(self) -> NoiseSample | None:
        if self.settings.noise is None or len(self.sizes) < 2:
            return None
        whole = squared_norm(self.gradients.current()) * self._unscaled()
        if self.settings.noise == "first":
            return NoiseSample(tuple(self.sizes), whole, self._norms[0], None)
        weighted = sum(size * norm for size, norm in zip(self.sizes, self._norms, strict=True))
        return NoiseSample(tuple(self.sizes), whole, None, torch.as_tensor(weighted))

    def _unscaled(self) -> Tensor | float:
        scaler = self.settings.scaler
        return 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.device)).double() ** -2


def _checked(returned: Any, size: int) -> tuple[Tensor, Tensor]:
    losses, weights = returned if isinstance(returned, tuple) else (returned, None)
    weights = torch.ones(size, device=losses.device, dtype=losses.dtype) if weights is None else weights
    for name, values in (("losses", losses), ("weights", weights)):
        if tuple(values.shape) != (size,):
            raise LossError(
                f"{name} of a callable loss: expected one per sample, shape ({size},), got shape "
                f"{tuple(values.shape)}; do not reduce over the batch"
            )
    return losses, weights
