"""What one of several processes does of the whole: its samples of each effective batch, and of a part of the data."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigstep.config.train import TrainConfig
from bigstep.errors import ProjectError
from bigstep.step.losses import is_loss
from bigstep.step.process_group import Processes
from bigstep.step.slicing import share_sizes, slices
from bigstep.training.state import TrainingState

__all__ = ["BatchShare", "WholeBatch", "batch_share", "check_same_start", "is_mixing", "own_part"]


def is_mixing(train: TrainConfig) -> bool:
    """Return whether each sample of an effective batch is mixed with the one before it."""
    return train.mixup_alpha is not None or train.cutmix_alpha is not None


def own_part(processes: Processes | None, num_samples: int) -> slice:
    """Return which of ``num_samples`` this process looks at: all of them if it is alone."""
    if processes is None:
        return slice(None)
    return slices(share_sizes(num_samples, processes.count))[processes.rank]


@dataclass(frozen=True)
class WholeBatch:
    """What each of several processes knows of an effective batch, so that they need not exchange it."""

    labels: Tensor
    """Of all samples, as stored."""
    sizes: tuple[int, ...]
    """Number of samples of each process."""

    def weight(self, loss: Any, num_classes: int, *, is_mixed: bool) -> float | None:
        """Return the weight of all targets; None if ``loss`` is a callable, which does not say it beforehand.

        Mixed targets are probabilities, or numbers of which only the count enters.
        """
        if not is_loss(loss):
            return None
        return loss.weight(torch.zeros(len(self.labels), num_classes) if is_mixed else self.labels)


@dataclass(frozen=True)
class BatchShare:
    """The share of one process in every effective batch."""

    rank: int
    count: int
    """Of processes."""
    unit: int
    """Samples that stay together: a ghost batch, or one."""
    with_previous: bool
    """Whether the sample before the own ones is needed, too."""

    def sizes(self, num_samples: int) -> tuple[int, ...]:
        """Return how many samples of an effective batch each process has."""
        return share_sizes(num_samples, self.count, self.unit)

    def positions(self, num_samples: int) -> NDArray[np.int64]:
        """Return the positions of what is loaded of an effective batch; that of the sample before, if needed, is the first."""
        part = slices(self.sizes(num_samples))[self.rank]
        own = np.arange(part.start, part.stop)
        if not self.with_previous or not len(own):
            return own
        return np.concatenate([[(part.start - 1) % num_samples], own])


def batch_share(processes: Processes | None, train: TrainConfig, ghost_batch_size: int | None) -> BatchShare | None:
    """Return the share of this process in every effective batch; None if it is alone."""
    if processes is None:
        return None
    return BatchShare(processes.rank, processes.count, ghost_batch_size or 1, is_mixing(train))


def check_same_start(state: TrainingState) -> None:
    """Check that all processes start at the same step with the same parameters.

    Raises:
        ProjectError: they do not, in all of them.
    """
    if state.processes is None:
        return
    parameters = sum(float(parameter.detach().double().abs().sum()) for parameter in state.classifier.parameters())
    found = torch.zeros(state.processes.count, 2, dtype=torch.float64, device=state.classifier.mean.device)
    found[state.processes.rank] = torch.tensor([float(state.step), parameters])
    steps, sums = state.processes.add_up(found).unbind(dim=1)
    if not (steps == steps[0]).all() or not (sums == sums[0]).all():
        raise ProjectError(
            f"hardware.processes: expected all processes to start alike, got steps {steps.long().tolist()}; run the same "
            "command again"
        )
