"""A training before its first step: model, optimizer and accumulator on their device, from the parameters."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.model import ModelConfig
from bigstep.config.params import Params, check_compile
from bigstep.config.processes import reason_for_one_process
from bigstep.config.train import TrainConfig
from bigstep.data.manifest import Manifest
from bigstep.data.ordered_batches import ordered_batches
from bigstep.data.seeding import derive_key
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.data.transforms import build_transforms, check_transforms, transform_sample
from bigstep.errors import ConfigError
from bigstep.models.building import InputShape
from bigstep.models.model_files import build_classifier
from bigstep.runtime.device import choose_device, memory_format, set_threads
from bigstep.step.process_group import check_model, open_processes
from bigstep.tasks.registry import task_of
from bigstep.tasks.task import Task
from bigstep.training.chosen_loss import build_loss
from bigstep.training.compilation import CompiledClassifier
from bigstep.training.compiled_check import compile_training
from bigstep.training.state import TrainingState, build_state

__all__ = ["build_training", "check_inputs", "task_of_store"]

NUM_AUGMENTED = 32  # images on which a list of transforms is tried


def build_training(
    store: Store, batch: BatchSizes, params: Params, *, weights: Path | None, group: Any = None
) -> TrainingState:
    """Build what a training starts with.

    Args:
        store: the images.
        batch: sizes of a step.
        params: the configuration.
        weights: the file of model.weights.
        group: of torch.distributed, whose processes share each effective batch.

    Raises:
        ConfigError: BatchNorm would have a micro-batch of one sample, the images cannot be augmented as configured, a key means
            nothing for the targets, the training cannot be compiled, or it must stay in one process.
        ModelError: the weights do not fit the model.
    """
    model, train, hardware = params.model, params.train, params.hardware
    check_compile(model, hardware)
    _check_batch_norm(model, batch, len(store.indices(Split.TRAIN)))
    task = task_of_store(store)
    task.check(train)
    check_inputs(train, store.manifest)
    _check_augmentation(train, store)
    processes = open_processes(group)
    set_threads(hardware, 1 if processes is None else processes.count)
    device = choose_device(hardware)
    torch.manual_seed(derive_key("weights", train.seed))
    manifest = store.manifest
    classifier = build_classifier(
        model,
        InputShape.of(manifest),
        mean=manifest.mean,
        std=manifest.std,
        memory_format=memory_format(hardware),
        weights=weights,
        activation_checkpointing=hardware.activation_checkpointing,
    ).to(device)
    state = build_state(
        CompiledClassifier(classifier, batch.micro_batch_size) if hardware.compile else classifier,
        train,
        batch,
        num_samples=len(store.indices(Split.TRAIN)),
        task=task,
        loss=build_loss(train, task, store.labels[store.indices(Split.TRAIN)], device),
        model=model,
        noise=params.tracking.noise_scale,
        group=group,
    )
    if state.processes is not None:
        _check_shared(state, params, len(store.indices(Split.TRAIN)))
    if hardware.compile:
        compile_training(state, train, *_first_images(train, store, batch.micro_batch_size))
    return state


def _check_shared(state: TrainingState, params: Params, num_samples: int) -> None:
    """Check that the number of processes does not change what is learned."""
    assert state.processes is not None
    problem = reason_for_one_process(params.model, params.train, params.hardware)
    if problem is not None:
        raise ConfigError(problem)
    if num_samples < state.processes.count:
        raise ConfigError(
            f"hardware.processes: expected at most the {num_samples} training samples, got {state.processes.count}; write "
            f"{num_samples} or fewer"
        )
    if not state.frozen_statistics:
        try:
            check_model(state.classifier, state.statistics)
        except ValueError as error:
            raise ConfigError(f"hardware.processes: expected 1 with this network, got several ({error}); write 1") from None


def _first_images(train: TrainConfig, store: Store, count: int) -> tuple[Tensor, Tensor]:
    """Return ``count`` training images or all, of the type that they have once they are augmented, and their labels."""
    images, labels = next(ordered_batches(store, Split.TRAIN, count))
    if isinstance(train.augmentation, str):
        return images, labels
    transforms = build_transforms(train.augmentation)
    return images.to(transform_sample(transforms, images[0], train.seed, 0, 0).dtype), labels


def task_of_store(store: Store) -> Task:
    """Return the task that prepared data is for."""
    manifest = store.manifest
    return task_of(manifest.task, manifest.classes, manifest.target_mean, manifest.target_std)


def check_inputs(train: TrainConfig, manifest: Manifest) -> None:
    """Refuse what is for images only where samples are no images; the default of ``train.augmentation`` is passed over.

    Raises:
        ConfigError: one line.
    """
    if manifest.is_image:
        return
    default = TrainConfig.model_fields["augmentation"].default
    no_images, is_integer = "samples that are no images", not manifest.mean
    for key, value, wanted, what in (
        ("augmentation", None if train.augmentation in ("none", default) else train.augmentation, "none", no_images),
        ("cutmix_alpha", train.cutmix_alpha, "null", no_images),
        ("mixup_alpha", train.mixup_alpha if is_integer else None, "null", "samples of integers"),
    ):
        if value is not None:
            raise ConfigError(f"train.{key}: expected {wanted} with {what}, got {value}; write {wanted}")


def _check_augmentation(train: TrainConfig, store: Store) -> None:
    if not isinstance(train.augmentation, str):
        images, _ = next(ordered_batches(store, Split.TRAIN, NUM_AUGMENTED))
        check_transforms(train.augmentation, images.unbind(), train.seed)


def _check_batch_norm(model: ModelConfig, batch: BatchSizes, num_samples: int) -> None:
    left = num_samples % batch.effective_batch_size
    if model.norm == "batch" and (left == 1 or batch.effective_batch_size == 1 or batch.micro_batch_size == 1):
        raise ConfigError(
            f"model.norm batch: expected at least two samples in every micro-batch, got one ({num_samples} training samples in "
            f"effective batches of {batch.effective_batch_size}); change train.effective_batch_size by one"
        )
