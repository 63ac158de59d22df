"""Train: steps, validations and the choice of the best epoch, as a generator of records.

Order within a step, once per step and never per micro-batch: gradient of the effective batch, unscale, finiteness, clip,
optimizer step (weight decay inside), scale update, running statistics, schedule, average, counters.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bigstep.config.train import TrainConfig
from bigstep.data.mixing import mix_batch
from bigstep.data.store import Store
from bigstep.errors import DivergedError
from bigstep.memory.measurement import held_bytes, peak_growth
from bigstep.step.accumulate import BackwardResult
from bigstep.step.batch_norm import BATCH_NORMS, freeze_statistics
from bigstep.step.gradient_sum import squared_norm
from bigstep.step.torch_internals import all_parameters
from bigstep.training.records import EpochRecord, StepRecord
from bigstep.training.shares import WholeBatch, is_mixing
from bigstep.training.state import Best, TrainingState
from bigstep.training.transaction import apply_update, compute_gradient, rehearse
from bigstep.training.validation import validate_state

__all__ = ["EpochBatches", "mean_loss", "set_training_mode", "take_step", "train_epochs"]

MEASURED = 3  # micro-batches: from the second on gradients are alive, which is where the peak is


class EpochBatches(Protocol):
    """Where effective batches come from."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Return images and labels of each effective batch of an epoch, from the batch ``start`` on.

        For one of several processes those of its share, and what all know of the whole batch.
        """
        ...


def train_epochs(
    state: TrainingState, train: TrainConfig, store: Store, batches: EpochBatches
) -> Iterator[StepRecord | EpochRecord]:
    """Train until the last epoch or until early stopping; yields each step, and after each epoch its end.

    ``state`` is up to date at every yield, so the caller may stop there, save it, and resume from it.

    Raises:
        DivergedError: ``train.max_nonfinite_steps`` steps in a row had no finite gradient.
    """
    while state.epoch < train.epochs and not _out_of_patience(state, train):
        set_training_mode(state)
        start = len(state.epoch_losses)
        for number, (images, labels, *whole) in enumerate(batches.epoch(state.epoch, start), start):
            record = take_step(state, train, images, labels, *whole, measure_memory=number == 0)
            state.epoch_losses.append((record.loss, record.weight))
            yield record
            if state.num_bad_in_a_row >= train.max_nonfinite_steps:
                raise DivergedError(_diverged(state, train))
        yield _finish_epoch(state, train, store)


def take_step(
    state: TrainingState,
    train: TrainConfig,
    images: Tensor,
    labels: Tensor,
    whole: WholeBatch | None = None,
    *,
    measure_memory: bool = False,
) -> StepRecord:
    """Attempt one optimizer step over one effective batch, in smaller micro-batches where memory runs out.

    With ``measure_memory`` the step's peak is left in ``state.peak_bytes``, at the cost of three micro-batches more. One of
    several processes has a share, with the sample before it where they are mixed, and knows what it must of the ``whole``.

    Raises:
        OutOfMemoryError: it does not fit one sample at a time.
    """
    if measure_memory and state.processes is None:  # a rehearsal would wait for the other processes
        _measure_peak(state, train, images, labels)
    if state.processes is None:
        result, norm = compute_gradient(state, partial(_gradient, state, train, images, labels))
    else:  # what follows the exchange is done once: the others would not take part again
        known = _known(state, train, whole)
        shared = compute_gradient(state, partial(_exchanged, state, train, images, labels, known))
        result, norm = _finished(state, train, shared)
    learning_rate = float(state.optimizer.param_groups[0]["lr"])
    applied = result.weight > 0 and math.isfinite(norm)
    if applied:
        apply_update(state)
        if result.noise is not None:
            state.noise.update(result.noise)
    else:
        _drop(state, has_weight=result.weight > 0)
    state.optimizer.zero_grad()
    record = StepRecord(
        step=state.step,
        epoch=state.epoch,
        num_samples=len(labels) if state.processes is None else result.num_samples,
        loss=result.loss,
        weight=result.weight,
        gradient_norm=norm,
        learning_rate=learning_rate,
        noise_scale=state.noise.value,
        applied=applied,
        micro_batch_size=max(result.micro_batch_sizes, default=0),
    )
    state.step += 1
    state.num_updates += applied
    state.num_dropped += not applied
    if result.weight > 0:
        state.num_bad_in_a_row = 0 if applied else state.num_bad_in_a_row + 1
    return record


def _gradient(state: TrainingState, train: TrainConfig, images: Tensor, labels: Tensor) -> tuple[BackwardResult, float]:
    """Return the whole batch's gradient, unscaled and clipped, and its norm before clipping."""
    mixed, targets = _mixed(state, train, images, labels)
    return _finished(state, train, state.accumulator.backward(mixed, targets, step=state.step))


def _known(state: TrainingState, train: TrainConfig, whole: WholeBatch | None) -> dict[str, Any]:
    """Return what the processes need not exchange, since each knows it: the weight of all targets, and who has how many."""
    if whole is None:
        return {}
    return {"weight": whole.weight(state.loss, len(state.task.names), is_mixed=is_mixing(train)), "sizes": whole.sizes}


def _exchanged(
    state: TrainingState, train: TrainConfig, images: Tensor, labels: Tensor, known: dict[str, Any]
) -> BackwardResult:
    """Return the whole batch's gradient, of which this process has a share, with the sample before it where they are mixed."""
    if not len(labels):
        return state.accumulator.backward(None, None, step=state.step, **known)
    try:
        mixed, targets = _mixed(state, train, images, labels)
    except (RuntimeError, MemoryError) as error:
        state.accumulator.fail(error, **known)
    begin = 1 if is_mixing(train) else 0
    return state.accumulator.backward(mixed[begin:], targets[begin:], step=state.step, **known)


def _mixed(state: TrainingState, train: TrainConfig, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return mix_batch(
        images,
        labels,
        len(state.task.names),
        mixup_alpha=train.mixup_alpha,
        cutmix_alpha=train.cutmix_alpha,
        seed=train.seed,
        step=state.step,
    )


def _finished(state: TrainingState, train: TrainConfig, result: BackwardResult) -> tuple[BackwardResult, float]:
    state.scaler.unscale_(state.optimizer)
    norm = _gradient_norm(state, result)
    found = float(norm)
    if train.clip_norm is not None and train.clip_norm < found + 1e-6 < math.inf:  # else torch multiplies by 1
        clip_grads_with_norm_(all_parameters([state.classifier]), train.clip_norm, norm)
    return result, found


def _measure_peak(state: TrainingState, train: TrainConfig, images: Tensor, labels: Tensor) -> None:
    """Record the peak of tensors: what model, optimizer, average and batch hold, and what grows on top in some micro-batches.

    They run beside the step, and leave nothing: recording a whole long step would itself take hundreds of megabytes.
    """
    device, count = state.classifier.mean.device, MEASURED * state.accumulator.micro_batch_size
    held = held_bytes(state.classifier, state.optimizer, state.average, images if images.device == device else None)
    sample = partial(_gradient, state, train, images[:count], labels[:count])
    growth = rehearse(state, lambda: peak_growth(sample, device))
    state.peak_bytes = None if growth is None else held + growth


def _gradient_norm(state: TrainingState, result: BackwardResult) -> Tensor:
    """Reuse the norm if the noise scale has measured it already: it is the same number."""
    if result.noise is not None:
        return result.noise.whole.sqrt()
    return squared_norm([p.grad for p in all_parameters([state.classifier]) if p.grad is not None]).sqrt()


def _drop(state: TrainingState, *, has_weight: bool) -> None:
    state.statistics.discard()
    state.scaler.update(None if has_weight else state.scaler.get_scale())  # it backs off, or would overflow forever


def _diverged(state: TrainingState, train: TrainConfig) -> str:
    return (
        f"train.max_nonfinite_steps: expected a finite gradient at least every {train.max_nonfinite_steps} steps, got none "
        f"in the last {state.num_bad_in_a_row} (up to step {state.step}, all dropped); "
        "lower train.learning_rate, or check the data"
    )


def _finish_epoch(state: TrainingState, train: TrainConfig, store: Store) -> EpochRecord:
    validation = validate_state(state, store)
    score = -validation.score if state.task.higher_is_better else validation.score
    value = validation.loss if train.monitor == "val_loss" else score
    is_best = math.isfinite(value) and (state.best is None or value < state.best.value)
    if is_best:
        weights = {name: tensor.detach().cpu().clone() for name, tensor in state.evaluated_model.network.state_dict().items()}
        state.best = Best(state.epoch, value, validation.loss, validation.score, weights)
    state.epochs_without_gain = 0 if is_best else state.epochs_without_gain + 1
    if isinstance(state.schedule, ReduceLROnPlateau):
        state.schedule.step(value)
    record = EpochRecord(
        epoch=state.epoch,
        num_updates=state.num_updates,
        num_dropped=state.num_dropped,
        train_loss=mean_loss([(float(loss), weight) for loss, weight in state.epoch_losses]),
        validation=validation,
        is_best=is_best,
        peak_bytes=state.peak_bytes,
    )
    state.epoch += 1
    state.epoch_losses = []
    return record


def mean_loss(losses: list[tuple[float, float]]) -> float:
    """Return the mean of losses by their weights, over the steps in which the loss was a number; NaN if it never was."""
    found = [(loss, weight) for loss, weight in losses if math.isfinite(loss)]
    total = sum(weight for _, weight in found)
    return sum(loss * weight for loss, weight in found) / total if total else math.nan


def _out_of_patience(state: TrainingState, train: TrainConfig) -> bool:
    patience = train.early_stopping_patience
    return patience is not None and state.epochs_without_gain >= patience


def set_training_mode(state: TrainingState) -> None:
    """Training mode, except for BatchNorm whose statistics or parameters are frozen."""
    state.classifier.train()
    if state.frozen_statistics:
        freeze_statistics(state.classifier)
    for module in state.classifier.modules():
        if isinstance(module, BATCH_NORMS) and module.weight is not None and not module.weight.requires_grad:
            module.eval()
