"""Small trainings on the digits, built as the stage does."""

from typing import Any

import torch
from torch import Tensor

from bigstep.config.batch_sizes import resolve_batch
from bigstep.config.hardware import HardwareConfig
from bigstep.config.model import ModelConfig
from bigstep.config.train import TrainConfig
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.models.building import InputShape
from bigstep.models.model_files import build_classifier
from bigstep.step.losses import CrossEntropy
from bigstep.tasks.classification import Classification
from bigstep.training.loop import train_epochs
from bigstep.training.state import TrainingState, build_state
from bigstep.training.training_batches import TrainingBatches


def quick_train(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate({"epochs": 2, "warmup_fraction": 0.0, **values})


def ten_classes(train: TrainConfig, weights: Tensor | None = None) -> dict[str, Any]:
    """Task and loss of a training on the digits, as arguments of ``build_state``."""
    task = Classification(tuple(map(str, range(10))))
    return {"task": task, "loss": CrossEntropy(weights, label_smoothing=train.label_smoothing)}


def build_digits_training(
    store: Store, train: TrainConfig, micro: int | None = 16, weights: Tensor | None = None, **model: Any
) -> tuple[TrainingState, Any]:
    section = ModelConfig.model_validate({"width": 4, **model})
    batch = resolve_batch(train, HardwareConfig(micro_batch_size=micro), section)
    manifest = store.manifest
    torch.manual_seed(train.seed)
    classifier = build_classifier(section, InputShape(1, 8, 10), mean=manifest.mean, std=manifest.std)
    samples = len(store.indices(Split.TRAIN))
    state = build_state(classifier, train, batch, num_samples=samples, **ten_classes(train, weights), model=section)
    return state, batch


def first_batch(store: Store) -> tuple[Tensor, Tensor]:
    return next(TrainingBatches(store, quick_train(augmentation="none"), 64).epoch(0))


def train_all(state: TrainingState, train: TrainConfig, batch: Any, store: Store) -> Any:
    return train_epochs(state, train, store, TrainingBatches(store, train, batch.effective_batch_size, 0))


def flat_weights(state: TrainingState) -> Tensor:
    return torch.cat([p.detach().flatten() for p in state.classifier.parameters()])
