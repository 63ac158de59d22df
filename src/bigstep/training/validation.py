"""Evaluate a training's model on the validation part, and recompute BatchNorm's statistics for the best weights."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from bigstep.config.model import ModelConfig
from bigstep.data.ordered_batches import ordered_batches
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.errors import OutOfMemoryError
from bigstep.models.classifier import Classifier
from bigstep.step.channel_statistics import ChannelStatistics, pool_all
from bigstep.step.recalibration import recalibrate
from bigstep.tasks.task import Tally, Task
from bigstep.training.out_of_memory_guard import MemoryExhaustedError
from bigstep.training.records import Validation
from bigstep.training.shares import own_part
from bigstep.training.state import TrainingState

__all__ = ["is_recalibrated", "recalibrate_best", "validate", "validate_state"]

T = TypeVar("T")
Batches = Iterator[tuple[Tensor, Tensor]]


def validate(classifier: Classifier, batches: Batches, task: Task) -> Validation:
    """Evaluate a classifier on a split: losses are summed over all samples and divided once."""
    return Validation(*_add_up(classifier, batches, task).result())


def validate_state(state: TrainingState, store: Store) -> Validation:
    """Evaluate the model of a training on the validation part; of several processes each does its own part of it.

    Raises:
        OutOfMemoryError: it does not fit.
    """
    judged, processes = state.evaluated_model, state.processes
    batches = partial(_own_batches, state, store, Split.VALIDATION)
    local = partial(_guarded, state, lambda: _add_up(judged, batches(), state.task))
    if processes is None:
        return Validation(*local().result())
    tally = processes.together(local, judged.mean.device)
    tally.pool(processes.add_up)
    return Validation(*tally.result())


def is_recalibrated(model: ModelConfig) -> bool:
    """Return whether running statistics are recomputed at the end of a training."""
    return model.norm == "batch" and model.batch_norm_statistics == "recalibrated"


def recalibrate_best(state: TrainingState, store: Store) -> Validation:
    """Recompute BatchNorm's running statistics for the best weights, over the training images, and evaluate them."""
    assert state.best is not None
    judged, device, processes = state.evaluated_model, state.evaluated_model.mean.device, state.processes
    judged.network.load_state_dict(state.best.weights)
    batches = partial(_own_batches, state, store, Split.TRAIN)

    def pool(seen: ChannelStatistics, num_channels: int) -> None:
        if processes is not None:
            pool_all([(num_channels, seen)], processes.add_up, device)

    _guarded(state, lambda: recalibrate(judged, batches, lambda batch: judged(batch[0].to(device)), pool))
    validation = validate_state(state, store)
    weights = {name: tensor.detach().cpu().clone() for name, tensor in judged.network.state_dict().items()}
    state.best = replace(state.best, loss=validation.loss, score=validation.score, weights=weights)
    return validation


def _own_batches(state: TrainingState, store: Store, split: Split) -> Batches:
    part = own_part(state.processes, len(store.indices(split)))
    return ordered_batches(store, split, state.accumulator.micro_batch_size, part)


@torch.no_grad()
def _add_up(classifier: Classifier, batches: Batches, task: Task) -> Tally:
    was_training = classifier.training
    classifier.eval()
    device = classifier.mean.device
    tally = task.tally(device)
    for images, labels in batches:
        tally.add(classifier(images.to(device)), labels.to(device))
    classifier.train(was_training)
    return tally


def _guarded(state: TrainingState, function: Callable[[], T]) -> T:
    try:
        return state.guard.call(function)
    except MemoryExhaustedError as failure:
        problem = str(failure)
    size = state.accumulator.micro_batch_size
    raise OutOfMemoryError(
        f"validation: expected {size} samples at a time to fit in memory, got: {problem}; lower hardware.micro_batch_size"
    )
