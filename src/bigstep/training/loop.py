"""Train: steps, validations and the choice of the best epoch, as a generator of records.

Order within a step, once per step and never per micro-batch: gradient of the effective batch, unscale, finiteness, clip,
optimizer step (weight decay inside), scale update, running statistics, schedule, average, counters.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bigstep.config.batch import Batch
from bigstep.config.train import Train
from bigstep.data.batches import ordered_batches
from bigstep.data.mixing import mix_batch
from bigstep.data.store import Store
from bigstep.models.classifier import Classifier
from bigstep.step.accumulate import BackwardResult
from bigstep.step.gradients import squared_norm
from bigstep.step.normalization import BATCH_NORMS, freeze_statistics, recalibrate
from bigstep.training.records import EpochRecord, StepRecord, Validation
from bigstep.training.state import Best, TrainingState

__all__ = ["EpochBatches", "recalibrate_best", "set_training_mode", "take_step", "train_epochs", "validate"]

TRAIN, VALIDATION = 0, 1


class EpochBatches(Protocol):
    """Where effective batches come from."""

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give images and labels of each effective batch of an epoch."""
        ...


def train_epochs(
    state: TrainingState, train: Train, batch: Batch, store: Store, batches: EpochBatches
) -> Iterator[StepRecord | EpochRecord]:
    """Train until the last epoch or until early stopping; yields each step, and after each epoch its end.

    ``state`` is up to date at every yield, so the caller may stop there.
    """
    while state.epoch < train.epochs and not _out_of_patience(state, train):
        losses: list[tuple[Tensor, int]] = []
        set_training_mode(state)
        for images, labels in batches.epoch(state.epoch):
            record = take_step(state, train, images, labels)
            losses.append((record.loss, record.num_samples))
            yield record
        yield _finish_epoch(state, train, batch, store, losses)


def take_step(state: TrainingState, train: Train, images: Tensor, labels: Tensor) -> StepRecord:
    """Attempt one optimizer step over one effective batch."""
    mixed, targets = mix_batch(
        images,
        labels,
        state.num_classes,
        mixup_alpha=train.mixup_alpha,
        cutmix_alpha=train.cutmix_alpha,
        seed=train.seed,
        step=state.step,
    )
    result = state.accumulator.backward(mixed, targets, step=state.step)
    if state.scaler is not None:
        state.scaler.unscale_(state.optimizer)
    norm = _gradient_norm(state, result)
    learning_rate = float(state.optimizer.param_groups[0]["lr"])
    applied = result.weight > 0 and math.isfinite(float(norm))
    if applied:
        _apply(state, train, norm)
        if state.noise is not None and result.noise is not None:
            state.noise.update(result.noise)
    else:
        _drop(state, has_weight=result.weight > 0)
    state.optimizer.zero_grad()
    record = StepRecord(
        step=state.step,
        epoch=state.epoch,
        num_samples=len(labels),
        loss=result.loss,
        gradient_norm=float(norm),
        learning_rate=learning_rate,
        noise_scale=None if state.noise is None else state.noise.value,
        applied=applied,
    )
    state.step += 1
    state.num_updates += applied
    state.num_dropped += not applied
    return record


def _gradient_norm(state: TrainingState, result: BackwardResult) -> Tensor:
    """Take the norm that the noise scale has measured already, where it has: it is the same number."""
    if result.noise is not None:
        return result.noise.whole.sqrt()
    return squared_norm([p.grad for p in state.classifier.parameters() if p.grad is not None]).sqrt()


def _apply(state: TrainingState, train: Train, norm: Tensor) -> None:
    if train.clip_norm is not None:
        clip_grads_with_norm_(state.classifier.parameters(), train.clip_norm, norm)
    if state.scaler is not None:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.step()
    if state.statistics is not None:
        state.statistics.commit()
    if not isinstance(state.schedule, ReduceLROnPlateau):
        state.schedule.step()
    if state.average is not None:
        state.average.update_parameters(state.classifier)


def _drop(state: TrainingState, *, has_weight: bool) -> None:
    if state.statistics is not None:
        state.statistics.discard()
    if state.scaler is not None and has_weight:
        state.scaler.update()  # the scale backs off, or it would overflow for ever


def _finish_epoch(
    state: TrainingState, train: Train, batch: Batch, store: Store, losses: list[tuple[Tensor, int]]
) -> EpochRecord:
    validation = validate(state.judged, ordered_batches(store, VALIDATION, batch.micro_batch_size))
    value = validation.loss if train.select_by == "val_loss" else -validation.accuracy
    is_best = math.isfinite(value) and (state.best is None or value < state.best.value)
    if is_best:
        weights = {name: tensor.detach().cpu().clone() for name, tensor in state.judged.network.state_dict().items()}
        state.best = Best(state.epoch, value, validation.loss, validation.accuracy, weights)
    state.epochs_without_gain = 0 if is_best else state.epochs_without_gain + 1
    if isinstance(state.schedule, ReduceLROnPlateau):
        state.schedule.step(value)
    count = sum(samples for _, samples in losses)
    record = EpochRecord(
        epoch=state.epoch,
        num_updates=state.num_updates,
        num_dropped=state.num_dropped,
        train_loss=float(sum(float(loss) * samples for loss, samples in losses) / count),
        validation=validation,
        is_best=is_best,
    )
    state.epoch += 1
    return record


@torch.no_grad()
def validate(classifier: Classifier, batches: Iterator[tuple[Tensor, Tensor]]) -> Validation:
    """Judge a classifier, sample by sample: sums over the whole part, divided once."""
    was_training = classifier.training
    classifier.eval()
    device = classifier.mean.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    count = 0
    for images, labels in batches:
        logits, targets = classifier(images.to(device)), labels.to(device)
        loss += F.cross_entropy(logits.double(), targets, reduction="sum")
        correct += (logits.argmax(dim=1) == targets).sum()
        count += len(labels)
    classifier.train(was_training)
    return Validation(float(loss) / count, float(correct) / count)


def _out_of_patience(state: TrainingState, train: Train) -> bool:
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


def recalibrate_best(state: TrainingState, batch: Batch, store: Store) -> Validation:
    """Recompute BatchNorm's running statistics for the best weights, over the training images, and judge them anew."""
    assert state.best is not None
    judged, device = state.judged, state.judged.mean.device
    judged.network.load_state_dict(state.best.weights)
    recalibrate(judged, lambda: ordered_batches(store, TRAIN, batch.micro_batch_size), lambda b: judged(b[0].to(device)))
    validation = validate(judged, ordered_batches(store, VALIDATION, batch.micro_batch_size))
    weights = {name: tensor.detach().cpu().clone() for name, tensor in judged.network.state_dict().items()}
    state.best = replace(state.best, loss=validation.loss, accuracy=validation.accuracy, weights=weights)
    return validation
