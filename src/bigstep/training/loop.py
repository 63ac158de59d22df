"""Train: steps, validations and the choice of the best epoch, as a generator of records.

Order within a step, once per step and never per micro-batch: gradient of the effective batch, unscale, finiteness, clip,
optimizer step (weight decay inside), scale update, schedule, average, counters.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bigstep.config.batch import Batch
from bigstep.config.train import Train
from bigstep.data.batches import ordered_batches
from bigstep.data.store import Store
from bigstep.models.classifier import Classifier
from bigstep.models.norms import BATCH_NORMS
from bigstep.training.batches import training_batches
from bigstep.training.records import EpochRecord, StepRecord, Validation
from bigstep.training.state import Best, TrainingState

__all__ = ["train_epochs", "validate"]

TRAIN, VALIDATION = 0, 1


def train_epochs(state: TrainingState, train: Train, batch: Batch, store: Store) -> Iterator[StepRecord | EpochRecord]:
    """Train until the last epoch or until early stopping; yields each step, and after each epoch its end.

    ``state`` is up to date at every yield, so the caller may stop there.
    """
    while state.epoch < train.epochs and not _out_of_patience(state, train):
        losses: list[tuple[Tensor, int]] = []
        _set_training_mode(state.classifier)
        for images, labels in training_batches(
            store, size=batch.effective_batch_size, augmentation=train.augmentation, seed=train.seed, epoch=state.epoch
        ):
            record = take_step(state, train, images, labels)
            losses.append((record.loss, record.num_samples))
            yield record
        yield _finish_epoch(state, train, batch, store, losses)


def take_step(state: TrainingState, train: Train, images: Tensor, labels: Tensor) -> StepRecord:
    """Attempt one optimizer step over one effective batch."""
    result = state.accumulator.backward(images, labels)
    if state.scaler is not None:
        state.scaler.unscale_(state.optimizer)
    gradients = [p.grad for p in state.classifier.parameters() if p.grad is not None]
    norm = get_total_norm(gradients)
    learning_rate = float(state.optimizer.param_groups[0]["lr"])
    applied = result.weight > 0 and math.isfinite(float(norm))
    if applied:
        _apply(state, train, norm)
    elif state.scaler is not None and result.weight > 0:
        state.scaler.update()  # the scale backs off, or it would overflow for ever
    state.optimizer.zero_grad()
    record = StepRecord(
        step=state.step,
        epoch=state.epoch,
        num_samples=len(labels),
        loss=result.loss,
        gradient_norm=float(norm),
        learning_rate=learning_rate,
        applied=applied,
    )
    state.step += 1
    state.num_updates += applied
    state.num_dropped += not applied
    return record


def _apply(state: TrainingState, train: Train, norm: Tensor) -> None:
    if train.clip_norm is not None:
        clip_grads_with_norm_(state.classifier.parameters(), train.clip_norm, norm)
    if state.scaler is not None:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.step()
    if not isinstance(state.schedule, ReduceLROnPlateau):
        state.schedule.step()
    if state.average is not None:
        state.average.update_parameters(state.classifier)


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


def _set_training_mode(classifier: Classifier) -> None:
    """Training mode, except for BatchNorm layers that are frozen: their statistics stay too."""
    classifier.train()
    for module in classifier.modules():
        if isinstance(module, BATCH_NORMS) and module.weight is not None and not module.weight.requires_grad:
            module.eval()
