"""One step of the accumulator: checks, keyed randomness, micro-batches, and the end; all of it happens or nothing."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from bigstep.errors import RandomnessError
from bigstep.randomness.keyed_randomness import KeyedRandomness, NativeRandomness, RandomCallsChangedError, StepRandomness
from bigstep.step.batch_structure import check_usable
from bigstep.step.gradient_sum import GradientSum
from bigstep.step.micro_batch_loop import AccumulationSettings, MicroBatch, MicroBatchLoop, weighted_loss
from bigstep.step.preserved_state import StateGuard, preserved_state
from bigstep.step.processes import is_distributed, unwrapped
from bigstep.step.self_check import SelfCheck
from bigstep.step.torch_internals import all_parameters

__all__ = ["StepEnd", "StepRunner"]

StepEnd = Callable[[MicroBatchLoop, GradientSum, BaseException | None], Any]
"""Is called after the micro-batches; of several processes also with what ended them early. It sets ``.grad`` or raises."""


@final
class StepRunner:
    """Runs steps of one model and loss."""

    def __init__(self, settings: AccumulationSettings, *, seed: int | None, self_check: bool, shares: bool) -> None:
        """Run with ``settings``.

        Args:
            settings: of the accumulator.
            seed: of the accumulator.
            self_check: of the accumulator.
            shares: whether other processes wait for the end of a step, also where this one fails.
        """
        self._shares = shares
        model, loss = settings.model, settings.loss
        self._settings = settings
        self._randomness = None if seed is None else KeyedRandomness(unwrapped(model), seed)
        self._modules = tuple(module for module in (model, loss) if isinstance(module, nn.Module))
        self._state_guard = StateGuard(*self._modules)
        self._self_check = SelfCheck(model, loss, seed, settings.autocast) if self_check else None

    @property
    def device(self) -> torch.device:
        """The model's."""
        tensor = next(iter(self._settings.model.parameters()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def run(
        self,
        parts: Callable[[], Iterable[MicroBatch]],
        divisor: float,
        step: int,
        end: StepEnd,
        *,
        micro_batch_size: int,
        attempts: int,
    ) -> Any:
        """Run the micro-batches; once more with a new probe where the model's random calls have changed since the last."""
        settings, device = self._settings, self.device
        for attempt in range(attempts):
            start, problem = _Start(iter(()), None, NativeRandomness()), None
            try:
                start = self._prepare(parts(), step, micro_batch_size, fresh=attempt > 0, only_once=attempts == 1)
            except BaseException as error:
                if not self._shares:
                    raise
                problem = error
            gradients = GradientSum(
                all_parameters(self._modules), apart=settings.noise == "every", shared_memory=is_distributed(settings.model)
            )
            loop = MicroBatchLoop(settings, gradients, device, divisor, start.randomness)
            with suppress(RandomCallsChangedError), ExitStack() as stack:
                try:
                    stack.enter_context(gradients)  # what cannot be entered fails as a pass does: the others wait for the end
                    stack.enter_context(settings.statistics.hold())
                    stack.enter_context(self._state_guard.step(learns=start.first is not None))
                    _add_all(loop, start, is_last_attempt=attempt + 1 == attempts)
                except RandomCallsChangedError:
                    raise
                except BaseException as error:
                    if not self._shares:
                        raise
                    problem = error
                try:
                    return end(loop, gradients, problem)
                finally:
                    problem = None  # its frames hold activations, and this one
        raise AssertionError("the last attempt returns or raises")

    def _prepare(
        self,
        parts: Iterable[MicroBatch],
        step: int,
        micro_batch_size: int,
        *,
        fresh: bool,
        only_once: bool,
    ) -> "_Start":
        iterator, device = iter(parts), self.device
        first = next(iterator, None)
        if first is None:
            return _Start(iterator, None, NativeRandomness())
        check_usable(all_parameters(self._modules), first.batch)
        if self._self_check is not None:
            self._self_check.check(first.batch, micro_batch_size, device)
        return _Start(iterator, first, self._step_randomness(first, step, device, fresh=fresh, only_once=only_once))

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


@dataclass(frozen=True)
class _Start:
    """The micro-batches of a step: the first one, which was looked at, and the others; and its random numbers."""

    others: Iterator[MicroBatch]
    first: MicroBatch | None
    randomness: StepRandomness


def _add_all(loop: MicroBatchLoop, start: _Start, *, is_last_attempt: bool) -> None:
    """Add the micro-batches.

    Raises:
        RandomCallsChangedError: the random calls are others than before; a new probe may help.
        RandomnessError: so they were in the last attempt.
    """
    if start.first is None:
        return
    try:
        for part, is_last in _marked(start.first, start.others):
            loop.add(part, is_last=is_last)
    except RandomCallsChangedError:
        if not is_last_attempt:
            raise
        raise RandomnessError(
            "model: expected the same random calls in every micro-batch, to be keyed by sample, got others; "
            "leave out the seed to draw natively"
        ) from None


def _marked(first: MicroBatch, others: Iterator[MicroBatch]) -> Iterator[tuple[MicroBatch, bool]]:
    """Return micro-batches, and whether each is the last."""
    previous = first
    for following in others:
        yield previous, False
        previous = following
    yield previous, True
