"""The section ``train`` into an optimizer and a schedule of torch's."""

import math

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from bigstep.config.train import Train

__all__ = ["build_optimizer", "build_schedule"]


def build_optimizer(train: Train, model: nn.Module) -> Optimizer:
    """Make the optimizer over the parameters that learn; biases and norm parameters (one dimension) do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if train.optimizer == "sgd":
        return SGD(groups, lr=train.learning_rate, momentum=train.momentum, nesterov=train.nesterov)
    kind = Adam if train.optimizer == "adam" else AdamW
    return kind(groups, lr=train.learning_rate, betas=train.betas)


def build_schedule(train: Train, optimizer: Optimizer, updates_per_epoch: int) -> LRScheduler | ReduceLROnPlateau:
    """Make the schedule; all but plateau are stepped once per applied update, plateau once per validation."""
    if train.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, factor=train.factor, patience=train.plateau_patience)
    total = train.epochs * updates_per_epoch
    warmup = math.ceil(train.warmup_fraction * total)
    main = _main_schedule(train, optimizer, updates_per_epoch, max(1, total - warmup))
    if warmup == 0:
        return main
    ramp = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [ramp, main], milestones=[warmup])


def _main_schedule(train: Train, optimizer: Optimizer, updates_per_epoch: int, num_updates: int) -> LRScheduler:
    if train.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=num_updates)
    if train.schedule == "linear":
        return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=num_updates)
    if train.schedule == "step":
        return StepLR(optimizer, step_size=train.step_epochs * updates_per_epoch, gamma=train.factor)
    return ConstantLR(optimizer, factor=1.0)
