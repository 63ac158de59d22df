"""The exact gradient of an effective batch, computed one micro-batch at a time.

N samples in the effective batch, cut into micro-batches k of n_k samples; sample i has loss l_i and weight w_i.
The gradient wanted is that of L = sum_i(w_i * l_i) / W with W = sum_i(w_i). It is linear in the samples, so micro-batch k
contributes the gradient of S_k / W, where S_k sums w_i * l_i over its own samples: no mean of means, and no second pass
over the gradients, because W follows from the targets before the first forward pass.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.errors import LossError
from bigstep.step.batches import call_model, cut_batch, num_samples
from bigstep.step.losses import Loss
from bigstep.step.slicing import balanced_sizes, slices

__all__ = ["Accumulator", "BackwardResult"]

PerSampleLoss = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class BackwardResult:
    """What one effective batch gave."""

    loss: Tensor
    """Mean loss of the effective batch: a scalar on the model's device; reading it is the caller's choice."""
    weight: float
    """What the sum of losses was divided by; 0 means that ``.grad`` was left as it was."""
    micro_batch_sizes: tuple[int, ...]
    """Samples of each micro-batch, in order."""


@final
class Accumulator:
    """Adds the exact gradient of an effective batch's mean loss to ``.grad``, in micro-batches of bounded size.

    Equal to ``loss(model(inputs), targets).backward()`` on the whole batch, for every loss of the form
    ``sum(w * l) / sum(w)`` and every model that treats its samples apart (BatchNorm does not).
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | PerSampleLoss,
        *,
        micro_batch_size: int,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Remember the parts; nothing is copied.

        Args:
            model: any module; it runs in the mode it is in.
            loss: one of :mod:`bigstep.losses`, or a callable ``(outputs, targets)`` that returns one loss per sample, shape
                ``(n,)``, optionally with their weights as ``(losses, weights)``.
            micro_batch_size: the most samples of one forward and backward pass.
            autocast: run the forward pass under :class:`torch.autocast` of this type (torch.bfloat16 or torch.float16).
            scaler: scales each micro-batch's loss by its constant; unscaling and updating stay with the caller, once per step.

        Raises:
            ValueError: ``micro_batch_size`` is below 1.
            TypeError: ``loss`` is neither a loss nor callable.
        """
        balanced_sizes(1, micro_batch_size)
        if not (isinstance(loss, Loss) or callable(loss)):
            raise TypeError(f"loss must be a bigstep loss or a callable (outputs, targets), but is {loss!r}")
        self.model = model
        self.loss = loss
        self.micro_batch_size = micro_batch_size
        self.autocast = autocast
        self.scaler = scaler

    def backward(self, inputs: Any, targets: Any) -> BackwardResult:
        """Add the gradient of the batch's mean loss to ``.grad`` of the model's parameters.

        Args:
            inputs: a tensor ``(N, ...)``, or a tuple or dictionary of such, on the host or the device; they are moved to the
                model's device one micro-batch at a time.
            targets: the same, for the loss.

        Raises:
            ValueError: the tensors differ in their first dimension, or there is no sample.
            LossError: a callable loss returned something else than one loss per sample.
        """
        total = num_samples((inputs, targets))
        if total == 0:
            raise ValueError("an effective batch must hold at least one sample, but holds none; skip it")
        sizes = balanced_sizes(total, self.micro_batch_size)
        device = _device_of(self.model)
        parts = ((cut_batch(inputs, part, device), cut_batch(targets, part, device)) for part in slices(sizes))
        if isinstance(self.loss, Loss):
            return self._known_weight(parts, self.loss.weight(targets), sizes)
        return self._weight_after_forward(parts, sizes, self.loss)

    def backward_stream(self, micro_batches: Iterable[tuple[Any, Any]], weight: float) -> BackwardResult:
        """Do what :meth:`backward` does with micro-batches as they come, so that the whole need never be held.

        Args:
            micro_batches: ``(inputs, targets)`` pairs of one effective batch; their sizes are the caller's.
            weight: total weight of the effective batch, as ``loss.weight`` gives it for all targets together.
        """
        device = _device_of(self.model)
        sizes: list[int] = []

        def parts() -> Iterator[tuple[Any, Any]]:
            for inputs, targets in micro_batches:
                sizes.append(num_samples((inputs, targets)))
                yield cut_batch(inputs, slice(None), device), cut_batch(targets, slice(None), device)

        if not isinstance(self.loss, Loss):
            raise TypeError("backward_stream needs a bigstep loss, whose weight is known beforehand; a callable's is not")
        result = self._known_weight(parts(), weight, ())
        return BackwardResult(result.loss, result.weight, tuple(sizes))

    def _known_weight(self, parts: Iterable[tuple[Any, Any]], weight: float, sizes: tuple[int, ...]) -> BackwardResult:
        device = _device_of(self.model)
        if weight == 0:
            return BackwardResult(torch.zeros((), device=device), 0.0, ())
        assert isinstance(self.loss, Loss)
        total = torch.zeros((), device=device, dtype=torch.float64)
        for inputs, targets in parts:
            with self._forward_context(device):
                loss_sum = self.loss.sum(call_model(self.model, inputs), targets)
            self._backward(loss_sum / weight)
            total += loss_sum.detach()
        return BackwardResult(total / weight, weight, sizes)

    def _weight_after_forward(
        self, parts: Iterable[tuple[Any, Any]], sizes: tuple[int, ...], loss: PerSampleLoss
    ) -> BackwardResult:
        """Accumulate sums / N, and multiply by N / W at the end: the same law for weights that the forward pass finds."""
        device = _device_of(self.model)
        earlier = _take_gradients(self.model)
        count = sum(sizes)
        total = torch.zeros((), device=device, dtype=torch.float64)
        weight_sum = torch.zeros((), device=device, dtype=torch.float64)
        for (inputs, targets), size in zip(parts, sizes, strict=True):
            with self._forward_context(device):
                losses, weights = _checked(loss(call_model(self.model, inputs), targets), size)
                loss_sum = (losses * weights).sum()
            self._backward(loss_sum / count)
            total += loss_sum.detach()
            weight_sum += weights.detach().sum()
        weight = float(weight_sum)
        _give_gradients_back(self.model, earlier, factor=count / weight if weight else None)
        return BackwardResult(total / weight if weight else total * 0, weight, sizes if weight else ())

    def _forward_context(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)

    def _backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call] # torch's


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(iter(model.parameters()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _checked(returned: Any, size: int) -> tuple[Tensor, Tensor]:
    losses, weights = returned if isinstance(returned, tuple) else (returned, None)
    weights = torch.ones(size, device=losses.device, dtype=losses.dtype) if weights is None else weights
    for name, values in (("losses", losses), ("weights", weights)):
        if tuple(values.shape) != (size,):
            raise LossError(
                f"a callable loss must return one of its {name} per sample, shape ({size},), but returned shape "
                f"{tuple(values.shape)}; do not reduce over the batch"
            )
    return losses, weights


def _take_gradients(model: nn.Module) -> list[Tensor | None]:
    earlier = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    return earlier


def _give_gradients_back(model: nn.Module, earlier: list[Tensor | None], *, factor: float | None) -> None:
    for parameter, before in zip(model.parameters(), earlier, strict=True):
        if factor is None or parameter.grad is None:
            parameter.grad = before
        else:
            parameter.grad.mul_(factor)
            if before is not None:
                parameter.grad.add_(before)
