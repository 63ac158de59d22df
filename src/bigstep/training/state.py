"""Everything that training changes, and how it is built."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.model import ModelConfig
from bigstep.config.train import TrainConfig
from bigstep.errors import ConfigError
from bigstep.models.building import AUXILIARY_WEIGHTS
from bigstep.models.classifier import Classifier
from bigstep.step.accumulate import Accumulator
from bigstep.step.batch_norm import DeferredStatistics
from bigstep.step.losses import is_loss
from bigstep.step.noise_scale import NoiseScale
from bigstep.step.precision import PRECISIONS
from bigstep.step.process_group import Processes, open_processes
from bigstep.tasks.task import Task
from bigstep.training.auxiliary_loss import AuxiliaryLoss
from bigstep.training.compilation import CompiledClassifier
from bigstep.training.optimization import build_optimizer, build_schedule
from bigstep.training.out_of_memory_guard import OutOfMemoryGuard

__all__ = ["Best", "TrainingState", "build_state"]


@dataclass(frozen=True)
class Best:
    """The best epoch so far, and its weights (those of the average where there is one), on the host."""

    epoch: int
    value: float
    loss: float
    score: float
    weights: dict[str, Tensor]


class NoAverage(nn.Module):
    """What is there without an average of the weights: nothing is kept, and the model itself is evaluated."""

    def __init__(self, model: nn.Module) -> None:
        """Evaluate ``model``."""
        super().__init__()
        self._model = (model,)  # in a tuple, so that it is no submodule

    @property
    def module(self) -> nn.Module:
        """What :class:`AveragedModel` has under this name: the model to evaluate."""
        return self._model[0]

    def update_parameters(self, model: nn.Module) -> None:
        """Average nothing."""


@dataclass
class TrainingState:
    """All that changes while training; the loop owns it."""

    classifier: Classifier
    loss: Any
    accumulator: Accumulator
    optimizer: Optimizer
    schedule: LRScheduler | ReduceLROnPlateau
    scaler: torch.amp.GradScaler
    average: AveragedModel | NoAverage
    statistics: DeferredStatistics
    noise: NoiseScale
    task: Task
    frozen_statistics: bool
    guard: OutOfMemoryGuard
    compiled: CompiledClassifier | None = None
    """Runs the passes of training where they are compiled."""
    processes: Processes | None = None
    """Those that share each effective batch; None: this one is alone."""
    epoch: int = 0
    step: int = 0
    num_updates: int = 0
    num_dropped: int = 0
    num_bad_in_a_row: int = 0
    epoch_losses: list[tuple[Tensor, float]] = field(default_factory=list)
    """Loss and weight of each step of this epoch so far: its length is the position in the epoch."""
    epochs_without_gain: int = 0
    best: Best | None = field(default=None)
    peak_bytes: int | None = None
    """Of tensors, in the step that was measured last; None before one was."""

    @property
    def evaluated_model(self) -> Classifier:
        """The classifier that is validated and kept: the average where there is one."""
        assert isinstance(self.average.module, Classifier)
        return self.average.module


def build_state(  # noqa: PLR0913 # keywords, each apart
    trained: Classifier | CompiledClassifier,
    train: TrainConfig,
    batch: BatchSizes,
    *,
    num_samples: int,
    task: Task,
    loss: Any,
    model: ModelConfig,
    noise: str = "none",
    group: Any = None,
) -> TrainingState:
    """Build the state of a training before its first step.

    Args:
        trained: the classifier on its device, or what compiles it: :func:`compile_training` comes before the first step.
        train: the section ``train``.
        batch: sizes of a step.
        num_samples: of the training part.
        task: of the data.
        loss: to train with, as of the accumulator.
        model: the section ``model``.
        noise: micro-batches whose gradient norm is measured: ``first``, ``every`` or ``none``.
        group: of torch.distributed, whose processes share each effective batch.
    """
    precision = PRECISIONS[train.precision]
    classifier = trained.classifier if isinstance(trained, CompiledClassifier) else trained
    classifier.to(precision.parameter_dtype)
    device = next(classifier.parameters()).device
    scaler = precision.build_scaler(device)
    loss = _with_auxiliary_heads(loss, model)
    deferred = model.norm == "batch" and model.batch_norm_statistics in ("corrected", "recalibrated")
    statistics = DeferredStatistics(classifier if deferred else nn.Module())
    optimizer = build_optimizer(train, classifier.parameters())
    return TrainingState(
        classifier=classifier,
        loss=loss,
        accumulator=Accumulator(
            trained,
            loss,
            micro_batch_size=batch.micro_batch_size,
            seed=train.seed if train.keyed_randomness else None,
            autocast=precision.autocast,
            scaler=scaler,
            noise=None if noise == "none" else noise,
            statistics=statistics,
            self_check=False,  # check_slice_invariance does it, and what it finds is a tag of the run
            group=group,
        ),
        optimizer=optimizer,
        schedule=build_schedule(train, optimizer, -(-num_samples // batch.effective_batch_size)),
        scaler=scaler,
        average=_average(classifier, train.ema_decay),
        statistics=statistics,
        noise=NoiseScale(),
        task=task,
        guard=OutOfMemoryGuard(device),
        processes=open_processes(group),
        compiled=trained if isinstance(trained, CompiledClassifier) else None,
        frozen_statistics=model.norm == "batch" and model.batch_norm_statistics == "frozen",
    )


def _with_auxiliary_heads(loss: Any, model: ModelConfig) -> Any:
    if model.name not in AUXILIARY_WEIGHTS:
        return loss
    if not is_loss(loss):
        raise ConfigError(
            f"train.loss: expected null or CrossEntropyLoss with model.name {model.name}, which has auxiliary heads, got "
            "one that is called per sample; write null"
        )
    return AuxiliaryLoss(loss, AUXILIARY_WEIGHTS[model.name])


def _average(classifier: nn.Module, decay: float | None) -> AveragedModel | NoAverage:
    return NoAverage(classifier) if decay is None else AveragedModel(classifier, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call] # torch's
