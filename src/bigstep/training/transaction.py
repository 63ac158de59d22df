"""The parts of a step as transactions: a gradient that can be computed again, and an update that resumes where it stopped."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bigstep.errors import LostProcessError, LostStepError, OtherProcessError, OutOfMemoryError
from bigstep.step.batch_norm import BATCH_NORMS
from bigstep.step.preserved_state import ModuleState
from bigstep.training.out_of_memory_guard import MemoryExhaustedError
from bigstep.training.state import TrainingState

__all__ = ["apply_update", "compute_gradient", "rehearse"]

T = TypeVar("T")


def compute_gradient(state: TrainingState, compute: Callable[[], T]) -> T:
    """Call ``compute``; where memory runs out, put everything back, halve the micro-batch, and call it again.

    The smaller micro-batch is kept for the steps that follow. By slice invariance nothing else changes.

    Several processes compute it again together, those that failed with smaller micro-batches of their own. Where one of them
    cannot, all raise. Where one has ended, or they are out of step, nothing is exchanged any more: each would wait for another.

    Raises:
        LostProcessError: another process has ended.
        LostStepError: this process failed while the others waited for it.
        OtherProcessError: another process cannot compute it.
        OutOfMemoryError: a micro-batch of one does not fit, or the model forbids a smaller one.
    """
    before, processes, recover = _SavedState.of(state), state.processes, _nothing
    while True:
        try:
            return state.guard.call(compute)
        except MemoryExhaustedError as failure:
            recover = partial(_halve_micro_batch, state, str(failure))
        except OtherProcessError:
            recover = _nothing
        except BaseException as error:
            if processes is None or isinstance(error, (LostProcessError, LostStepError)):
                raise
            recover = partial(_raise, error)
        before.restore(state)
        if processes is None:
            recover()
        else:
            processes.together(recover, state.classifier.mean.device)


def _nothing() -> None:
    """Only another process has something to change."""


def _raise(error: BaseException) -> None:
    raise error


def rehearse(state: TrainingState, compute: Callable[[], T]) -> T | None:
    """Call ``compute`` and put everything back, also where it ends well; None where it ran out of memory."""
    before, result = _SavedState.of(state), None
    with contextlib.suppress(MemoryExhaustedError):
        result = state.guard.call(compute)
    before.restore(state)
    return result


def apply_update(state: TrainingState) -> None:
    """Move parameters, scale, running statistics, schedule and average by the gradient that is in ``.grad``."""
    groups = list(state.optimizer.param_groups)
    for group in groups:
        _step_group(state, group, groups)
    state.scaler.update()
    state.statistics.commit()
    if not isinstance(state.schedule, ReduceLROnPlateau):
        state.schedule.step()
    move = partial(state.average.update_parameters, state.classifier)
    state.guard.insist(move, lambda: None)  # in place: a failure comes before it moves anything


def _step_group(state: TrainingState, group: dict[str, object], groups: list[dict[str, object]]) -> None:
    """Step one group: one fused operation, in place, after the counts of steps, which are put back where it fails."""
    optimizer = state.optimizer
    states = [optimizer.state[parameter] for parameter in group["params"]]  # type: ignore[attr-defined] # a list of parameters
    counters = [item["step"] for item in states if isinstance(item.get("step"), Tensor)]
    values = torch.stack(counters) if counters else ()

    def step() -> None:
        optimizer.param_groups = [group]
        try:
            optimizer.step()
        finally:
            optimizer.param_groups = groups

    def undo() -> None:
        for counter, value in zip(counters, values, strict=True):
            counter.copy_(value)

    state.guard.insist(step, undo)


@dataclass(frozen=True)
class _SavedState:
    """What a failed gradient may have touched: buffers, torch's random state, the scale."""

    model: ModuleState
    random_state: Tensor
    scale: float
    device_states: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, state: TrainingState) -> "_SavedState":
        scale = state.scaler.get_scale()
        is_drawn = state.classifier.mean.is_cuda and state.processes is None  # several processes draw keyed numbers only
        devices = torch.cuda.get_rng_state_all() if is_drawn else []
        return cls(ModuleState.copied(state.classifier.network), torch.get_rng_state(), scale, devices)

    def restore(self, state: TrainingState) -> None:
        for parameter in state.classifier.parameters():
            parameter.grad = None
        self.model.restore()
        torch.set_rng_state(self.random_state)
        if self.device_states:
            torch.cuda.set_rng_state_all(self.device_states)
        state.statistics.discard()
        state.scaler.update(self.scale)  # with a value it only sets the scale, and forgets that it unscaled


def _halve_micro_batch(state: TrainingState, problem: str) -> None:
    size = state.accumulator.micro_batch_size
    across = any(isinstance(module, BATCH_NORMS) and module.training for module in state.classifier.modules())
    if across:
        raise OutOfMemoryError(
            f"model.norm batch: expected the ghost batch of {size} samples to fit in memory, got: {problem}; "
            "lower model.ghost_batch_size, or set model.norm to group"
        )
    if size == 1:
        raise OutOfMemoryError(
            f"memory: expected a micro-batch of one sample to fit, got: {problem}; use a smaller model, smaller samples, "
            "or hardware.activation_checkpointing"
        )
    state.accumulator.micro_batch_size = -(-size // 2)
