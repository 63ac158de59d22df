"""The exact gradient of an effective batch, computed one micro-batch at a time.

N samples in the effective batch, cut into micro-batches k of n_k samples; sample i has loss l_i and weight w_i.
The gradient wanted is that of L = sum_i(w_i * l_i) / W with W = sum_i(w_i). It is linear in the samples, so micro-batch k
contributes the gradient of S_k / W, where S_k sums w_i * l_i over its own samples: no mean of means, and no second pass
over the gradients, because W follows from the targets before the first forward pass.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.errors import LossError, RandomnessError
from bigstep.randomness.keyed_randomness import KeyedRandomness, NativeRandomness, RandomCallsChangedError, StepRandomness
from bigstep.step.batch_norm import DeferredStatistics
from bigstep.step.batch_structure import BatchStructure, check_usable
from bigstep.step.gradient_sum import GradientSum
from bigstep.step.loss_arguments import resolve_loss
from bigstep.step.losses import Loss
from bigstep.step.micro_batch_loop import AccumulationSettings, MicroBatch, MicroBatchLoop, PerSampleLoss, weighted_loss
from bigstep.step.noise_scale import NoiseSample
from bigstep.step.preserved_state import StateGuard, preserved_state
from bigstep.step.processes import is_distributed, unwrapped, warn_of_shares
from bigstep.step.self_check import SelfCheck
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
    ``sum(w * l) / sum(w)`` and every model that treats its samples apart. Whether yours do is checked on the first batch, on
    a few of its samples; BatchNorm does not, and is warned of. When anything goes wrong on the way, ``.grad``, buffers and
    torch's random state on the CPU are as they were before.
    """

    def __init__(  # noqa: PLR0913 # each is an option of its own
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
        shared: Sequence[str | int] = (),
        self_check: bool = True,
    ) -> None:
        """Remember the parts; nothing is copied.

        Args:
            model: any module; it runs in the mode it is in.
            loss: one of :mod:`bigstep.losses`, or a callable ``(outputs, targets)`` that returns one loss per sample, shape
                ``(n,)``, optionally with their weights as ``(losses, weights)``; torch's ``nn.CrossEntropyLoss``,
                ``nn.BCEWithLogitsLoss`` and ``nn.MSELoss`` with their default reduction are taken as ours.
            micro_batch_size: the most samples of one forward and backward pass.
            seed: keys dropout and other random calls of the model by (seed, step, position in the effective batch), so that
                they do not depend on the cut; None leaves them to torch's generators, which do.
            autocast: run the forward pass under :class:`torch.autocast` of this type (torch.bfloat16 or torch.float16).
            scaler: scales each micro-batch's loss by its constant; unscaling and updating stay with the caller, once per step.
            noise: measure squared gradient norms for :class:`bigstep.step.noise_scale.NoiseScale`: ``"first"`` of the first
                micro-batch and the whole, ``"every"`` of each micro-batch, which settles sooner and costs more; None does not.
            statistics: collects BatchNorm's statistics for one update per step.
            shared: keys or fields of the inputs, or positions in their tuple, that hold what all samples share, such as an
                attention mask of shape ``(L, L)``: they are passed whole.
            self_check: on the first batch, and after modules or their modes changed, run at most eight samples twice, cut in
                two ways, and compare; fewer than three passes a sample on average. Forward hooks are called more often.

        Raises:
            LossError: ``loss`` would be averaged otherwise than torch does.
            ValueError: ``micro_batch_size`` is below 1, or ``noise`` is unknown.
            TypeError: ``loss`` is neither a loss nor callable.
        """
        balanced_sizes(1, micro_batch_size)
        if noise not in (None, "first", "every"):
            raise ValueError(f"noise: expected None, 'first' or 'every', got {noise!r}")
        self.micro_batch_size = micro_batch_size
        loss = resolve_loss(loss)
        scaler = torch.amp.GradScaler(enabled=False) if scaler is None else scaler
        statistics = DeferredStatistics(nn.Module()) if statistics is None else statistics  # of no layer
        self._settings = AccumulationSettings(model, loss, autocast, scaler, noise, statistics)
        self._shared = tuple(shared)
        self._randomness = None if seed is None else KeyedRandomness(unwrapped(model), seed)
        self._modules = tuple(module for module in (model, loss) if isinstance(module, nn.Module))
        self._state_guard = StateGuard(*self._modules)
        self._self_check = SelfCheck(model, loss, seed) if self_check else None
        self._next_step = 0

    def backward(
        self,
        inputs: Any,
        targets: Any,
        *,
        step: int | None = None,
        positions: Tensor | None = None,
        weight: float | None = None,
    ) -> BackwardResult:
        """Add the gradient of the batch's mean loss to ``.grad`` of every parameter that takes part.

        Args:
            inputs: a tensor ``(N, ...)``, a list of N things (strings, tensors of different shapes), or a tuple, mapping or
                dataclass of such, on the host or the device; tensors are moved to the model's device one micro-batch at a
                time. The model is called with the items of a tuple, and with the keywords of a mapping.
            targets: the same, for the loss.
            step: keys random calls, with the seed; None counts the calls of this method.
            positions: of the samples in the effective batch, shape ``(N,)``, for one process among several; None: 0 to N - 1.
            weight: what the sum of losses is divided by; None: the weight of ``targets``. Where several processes share the
                effective batch and average their gradients, the whole batch's weight over their number.

        Raises:
            ValueError: the number of samples differs or does not follow, or there is no sample.
            ExactnessError: the first batch showed that the gradient depends on the micro-batch size.
            LossError: the loss returned or was given something else than it should.
            RandomnessError: there is a seed, and the model draws random numbers that cannot be keyed by sample.
        """
        batch = BatchStructure(inputs, targets, self._shared)
        total = batch.num_samples
        if total == 0:
            raise ValueError("effective batch: expected at least one sample, got none; skip it")
        places = torch.arange(total) if positions is None else positions
        loss = self._settings.loss

        def parts() -> Iterator[MicroBatch]:
            for part in slices(balanced_sizes(total, self.micro_batch_size)):
                yield MicroBatch(batch, part, places[part])

        if weight is None and isinstance(loss, Loss):
            weight = loss.weight(targets)
            if not self._next_step:
                warn_of_shares(self._settings.model)
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
                batch = BatchStructure(inputs, targets, self._shared)
                size = batch.num_samples
                yield MicroBatch(batch, slice(0, size), torch.arange(begin, begin + size))
                begin, found = begin + size, found + loss.weight(targets)
            if abs(found - weight) > WEIGHT_TOLERANCE * max(abs(weight), 1.0):
                raise LossError(
                    f"weight: expected that of all micro-batches together, {found:g}, got {weight:g}; "
                    "give loss.weight of all targets"
                )

        return self._run(parts, weight, weight, self._count(step), attempts=1)

    def _count(self, step: int | None) -> int:
        step = self._next_step if step is None else step
        self._next_step = step + 1
        return step

    def _run(
        self, parts: Callable[[], Iterator[MicroBatch]], weight: float | None, divisor: float, step: int, *, attempts: int
    ) -> BackwardResult:
        """Run the micro-batches; once more with a new probe where the model's random calls have changed since the last."""
        settings = self._settings
        device = _device_of(settings.model)
        if weight == 0:
            return BackwardResult(torch.zeros((), device=device), 0.0, None, ())
        for attempt in range(attempts):
            iterator = parts()
            first = next(iterator)
            check_usable(self._parameters(), first.batch)
            if self._self_check is not None:
                self._self_check.check(first.batch, self.micro_batch_size, device)
            randomness = self._step_randomness(first, step, device, fresh=attempt > 0, only_once=attempts == 1)
            with (
                suppress(RandomCallsChangedError),
                GradientSum(
                    self._parameters(), apart=settings.noise == "every", shared_memory=is_distributed(settings.model)
                ) as gradients,
                settings.statistics.hold(),
                self._state_guard.step(),
            ):
                run = MicroBatchLoop(settings, gradients, device, divisor, randomness)
                for part, is_last in _marked(first, iterator):
                    run.add(part, is_last=is_last)
                return BackwardResult(*run.finish(weight), tuple(run.sizes))
        raise RandomnessError(
            "model: expected the same random calls in every micro-batch, to be keyed by sample, got others; "
            "leave out the seed to draw natively"
        )

    def _parameters(self) -> Iterator[Tensor]:
        for module in self._modules:
            yield from module.parameters()

    def _step_randomness(
        self, first: MicroBatch, step: int, device: torch.device, *, fresh: bool, only_once: bool
    ) -> StepRandomness:
        if self._randomness is None:
            return NativeRandomness()

        def run(count: int) -> None:
            settings, part = self._settings, first.part
            indices = [part.start + index % (part.stop - part.start) for index in range(count)]
            inputs, targets = first.batch.take(indices, device)
            with preserved_state(*self._modules), settings.forward_context(device):
                weighted_loss(settings.loss, first.batch.call(unwrapped(settings.model), inputs), targets, count)

        return self._randomness.step(step, run, device, fresh=fresh, only_once=only_once)


def _marked(first: MicroBatch, others: Iterator[MicroBatch]) -> Iterator[tuple[MicroBatch, bool]]:
    """Return micro-batches, and whether each is the last."""
    previous = first
    for following in others:
        yield previous, False
        previous = following
    yield previous, True


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(iter(model.parameters()), None)
    return torch.device("cpu") if tensor is None else tensor.device
