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

from bigstep.errors import LossError, RandomnessError
from bigstep.step.batch_norm import DeferredStatistics, holding, put_back_on_error
from bigstep.step.gradient_sum import GradientSum
from bigstep.step.keyed_randomness import KeyedRandomness, KeyedStep, RandomCallsChangedError
from bigstep.step.losses import Loss
from bigstep.step.micro_batch_loop import AccumulationSettings, MicroBatch, MicroBatchLoop, PerSampleLoss
from bigstep.step.nested_tensors import cut_batch, map_tensors, num_samples
from bigstep.step.noise_scale import NoiseSample
from bigstep.step.slicing import balanced_sizes, slices

__all__ = ["Accumulator", "BackwardResult"]


WEIGHT_TOLERANCE = 1e-6  # of sums of float32 class weights in another order


@dataclass(frozen=True)
class BackwardResult:
    """The result of one effective batch."""

    loss: Tensor
    """Mean loss of the effective batch: a scalar on the model's device; reading it is the caller's choice."""
    weight: float
    """What the sum of losses was divided by; 0 means that ``.grad`` was left as it was."""
    noise: NoiseSample | None
    """Squared norms for the gradient noise scale; None with fewer than two micro-batches, or when not asked for."""
    micro_batch_sizes: tuple[int, ...]
    """Samples of each micro-batch, in order."""


@final
class Accumulator:
    """Adds the exact gradient of an effective batch's mean loss to ``.grad``, in micro-batches of bounded size.

    Equal to ``loss(model(inputs), targets).backward()`` on the whole batch, for every loss of the form
    ``sum(w * l) / sum(w)`` and every model that treats its samples apart (BatchNorm does not). When anything goes wrong on
    the way, ``.grad``, BatchNorm's running statistics and torch's random state on the CPU are as they were before.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | PerSampleLoss,
        *,
        micro_batch_size: int,
        seed: int | None = None,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        noise: str | None = None,
        statistics: DeferredStatistics | None = None,
    ) -> None:
        """Remember the parts; nothing is copied.

        Args:
            model: any module; it runs in the mode it is in.
            loss: one of :mod:`bigstep.losses`, or a callable ``(outputs, targets)`` that returns one loss per sample, shape
                ``(n,)``, optionally with their weights as ``(losses, weights)``.
            micro_batch_size: the most samples of one forward and backward pass.
            seed: keys dropout and other random calls of the model by (seed, step, position in the effective batch), so that
                they do not depend on the cut; None leaves them to torch's generators, which do.
            autocast: run the forward pass under :class:`torch.autocast` of this type (torch.bfloat16 or torch.float16).
            scaler: scales each micro-batch's loss by its constant; unscaling and updating stay with the caller, once per step.
            noise: measure squared gradient norms for :class:`bigstep.step.noise_scale.NoiseScale`: ``"first"`` of the first
                micro-batch and the whole, ``"every"`` of each micro-batch, which settles sooner and costs more; None does not.
            statistics: collects BatchNorm's statistics for one update per step.

        Raises:
            ValueError: ``micro_batch_size`` is below 1, or ``noise`` is unknown.
            TypeError: ``loss`` is neither a loss nor callable.
        """
        balanced_sizes(1, micro_batch_size)
        if not (isinstance(loss, Loss) or callable(loss)):
            raise TypeError(f"loss: expected a bigstep loss or a callable (outputs, targets), got {loss!r}")
        if noise not in (None, "first", "every"):
            raise ValueError(f"noise: expected None, 'first' or 'every', got {noise!r}")
        self.micro_batch_size = micro_batch_size
        self._settings = AccumulationSettings(model, loss, autocast, scaler, noise, statistics)
        self._randomness = None if seed is None else KeyedRandomness(model, seed)
        self._next_step = 0

    def backward(
        self, inputs: Any, targets: Any, *, step: int | None = None, positions: Tensor | None = None
    ) -> BackwardResult:
        """Add the gradient of the batch's mean loss to ``.grad`` of the model's parameters.

        Args:
            inputs: a tensor ``(N, ...)``, or a tuple or dictionary of such, on the host or the device; they are moved to the
                model's device one micro-batch at a time.
            targets: the same, for the loss.
            step: keys random calls, with the seed; None counts the calls of this method.
            positions: of the samples in the effective batch, shape ``(N,)``, for one process among several; None: 0 to N - 1.

        Raises:
            ValueError: the tensors differ in their first dimension, or there is no sample.
            LossError: a callable loss returned something other than one loss per sample.
            RandomnessError: there is a seed, and the model draws random numbers that cannot be keyed by sample.
        """
        total = num_samples((inputs, targets))
        if total == 0:
            raise ValueError("effective batch: expected at least one sample, got none; skip it")
        places = torch.arange(total) if positions is None else positions
        loss = self._settings.loss

        def parts() -> Iterator[MicroBatch]:
            for part in slices(balanced_sizes(total, self.micro_batch_size)):
                yield MicroBatch(_cut(inputs, part), _cut(targets, part), places[part])

        weight = loss.weight(targets) if isinstance(loss, Loss) else None
        return self._run(parts, weight, float(total) if weight is None else weight, self._count(step), attempts=2)

    def backward_stream(
        self, micro_batches: Iterable[tuple[Any, Any]], weight: float, *, step: int | None = None
    ) -> BackwardResult:
        """Do what :meth:`backward` does with micro-batches as they come, so that the whole need never be held.

        Args:
            micro_batches: ``(inputs, targets)`` pairs of one effective batch; their sizes are the caller's.
            weight: total weight of the effective batch, as ``loss.weight`` gives it for all targets together.
            step: keys random calls, with the seed; None counts the calls.

        Raises:
            LossError: the micro-batches' weights do not add up to ``weight``; ``.grad`` is as it was.
            TypeError: the loss is a callable, whose weight is not known beforehand.
        """
        loss = self._settings.loss
        if not isinstance(loss, Loss):
            raise TypeError("backward_stream needs a bigstep loss, whose weight is known beforehand; a callable's is not")

        def parts() -> Iterator[MicroBatch]:
            begin, found = 0, 0.0
            for inputs, targets in micro_batches:
                size = num_samples((inputs, targets))
                yield MicroBatch(inputs, targets, torch.arange(begin, begin + size))
                begin, found = begin + size, found + loss.weight(targets)
            if abs(found - weight) > WEIGHT_TOLERANCE * max(abs(weight), 1.0):
                raise LossError(
                    f"weight: expected that of all micro-batches together, {found:g}, got {weight:g}; "
                    "pass loss.weight of all targets"
                )

        return self._run(parts, weight, weight, self._count(step), attempts=1)

    def _count(self, step: int | None) -> int:
        step = self._next_step if step is None else step
        self._next_step = step + 1
        return step

    def _run(
        self, parts: Callable[[], Iterator[MicroBatch]], weight: float | None, divisor: float, step: int, *, attempts: int
    ) -> BackwardResult:
        """Run the micro-batches; again with a new probe if the model's random calls have changed since the last one."""
        model = self._settings.model
        device = _device_of(model)
        if weight == 0:
            return BackwardResult(torch.zeros((), device=device), 0.0, None, ())
        for attempt in range(attempts):
            iterator = parts()
            first = next(iterator)
            keyed = self._keyed(first, step, device, fresh=attempt > 0)
            with (
                contextlib.suppress(RandomCallsChangedError),
                GradientSum(model, apart=self._settings.noise == "every") as gradients,
                keyed as random_calls,
                holding(self._settings.statistics),
                put_back_on_error(model),
            ):
                run = MicroBatchLoop(self._settings, gradients, device, divisor, random_calls)
                run.add(first)
                for part in iterator:
                    run.add(part)
                return BackwardResult(*run.finish(weight), tuple(run.sizes))
        raise RandomnessError(
            "seed: expected a model that makes the same random calls in every micro-batch, got calls that changed; "
            "leave out the seed to use torch's own generators"
        )

    def _keyed(
        self, first: MicroBatch, step: int, device: torch.device, *, fresh: bool
    ) -> contextlib.AbstractContextManager[KeyedStep | None]:
        if self._randomness is None:
            return contextlib.nullcontext()
        inputs = cut_batch(first.inputs, slice(0, 3), device)
        sites = self._randomness.sites(inputs, lambda: self._settings.forward_context(device), fresh=fresh)
        return self._randomness.step(step, sites, device)


def _cut(batch: Any, part: slice) -> Any:
    return map_tensors(lambda tensor: tensor[part], batch)


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(iter(model.parameters()), None)
    return torch.device("cpu") if tensor is None else tensor.device
