"""Models wrapped for many processes: the module inside, and when gradients are exchanged."""

import contextlib
import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bigstep.errors import ExactnessWarning

__all__ = ["exchange", "is_distributed", "is_sharded", "unwrapped", "warn_of_shares"]

SHARDING = ("FSDPModule", "FullyShardedDataParallel")  # importing them takes long


def is_distributed(model: nn.Module) -> bool:
    """Return whether backward passes of ``model`` exchange gradients with other processes."""
    return isinstance(model, DistributedDataParallel)


def is_sharded(modules: Iterable[nn.Module]) -> bool:
    """Return whether one of ``modules`` is FSDP's, which has other parameters within its passes than outside."""
    return any(base.__name__ in SHARDING for module in modules for base in type(module).__mro__)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, whose passes exchange nothing."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def exchange(model: nn.Module, *, now: bool) -> contextlib.AbstractContextManager[Any]:
    """Return the context of a pass after which gradients are exchanged, or not."""
    if isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    return contextlib.nullcontext()


def warn_of_shares(model: nn.Module) -> None:
    """Warn where a model averages over processes and the weight of the whole effective batch was not given."""
    if is_distributed(model):
        warnings.warn(
            "DistributedDataParallel averages the gradients of its processes: exact only where their weights are equal; "
            "pass weight=, that of the whole effective batch over the number of processes, and positions=",
            ExactnessWarning,
            stacklevel=4,
        )
