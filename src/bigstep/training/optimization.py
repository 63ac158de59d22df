"""The section ``train`` into an optimizer and a schedule of torch's."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
)

from bigstep.config.train import TrainConfig
from bigstep.training.torch_internals import without_compiler

__all__ = ["build_optimizer", "build_schedule"]


def build_optimizer(train: TrainConfig, parameters: Iterable[Tensor]) -> Optimizer:
    """Make the optimizer over the parameters that learn; biases and norm parameters (one dimension) do not decay.

    It is fused and its state is there already: a step then allocates nothing, so running out of memory cannot tear it.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if train.optimizer == "sgd":
        sgd = without_compiler(SGD)
        return _prepared(sgd(groups, lr=train.learning_rate, momentum=train.momentum, nesterov=train.nesterov, fused=True))
    kind = without_compiler(Adam if train.optimizer == "adam" else AdamW)
    return _prepared(kind(groups, lr=train.learning_rate, betas=train.betas, fused=True))


@torch.no_grad()
def _prepared(optimizer: Optimizer) -> Optimizer:
    """Make the optimizer create its state by a step of length zero, then zero it, as before a first step."""
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        for tensor in state.values():
            if isinstance(tensor, torch.Tensor):
                tensor.zero_()
    return optimizer


def build_schedule(train: TrainConfig, optimizer: Optimizer, updates_per_epoch: int) -> LRScheduler | ReduceLROnPlateau:
    """Make the schedule; all but plateau are stepped once per applied update, plateau once per validation."""
    if train.schedule == "plateau":
        return ReduceLROnPlateau(
            optimizer,
            factor=train.lr_decay_factor,
            patience=train.plateau_patience,
            threshold=0.0,  # as early stopping compares; by torch's relative one an equal score, which is negative, is a gain
            threshold_mode="abs",
        )
    total = train.epochs * updates_per_epoch
    warmup = math.ceil(train.warmup_fraction * total)
    main = _main_schedule(train, optimizer, updates_per_epoch, total, warmup)
    if warmup == 0:
        return main
    ramp = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [ramp, main], milestones=[warmup])


def _main_schedule(train: TrainConfig, optimizer: Optimizer, updates_per_epoch: int, total: int, warmup: int) -> LRScheduler:
    num_updates = max(1, total - warmup)
    if train.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=num_updates)
    if train.schedule == "linear":
        return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=num_updates)
    if train.schedule == "step":
        period = train.lr_decay_epochs * updates_per_epoch  # from the start of training, not from the end of the warm-up
        return LambdaLR(optimizer, lambda update: train.lr_decay_factor ** ((update + warmup) // period))
    return ConstantLR(optimizer, factor=1.0)
