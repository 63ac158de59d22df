"""The group of torch.distributed that the processes of a training on this machine form: gloo on CPUs, NCCL on GPUs."""

from pathlib import Path
from typing import Any

import torch

from bigstep.runtime.environment import loopback_only

__all__ = ["is_lost_connection", "join_group", "leave_group"]


def join_group(folder: Path, rank: int, count: int, device: torch.device) -> Any:
    """Join the group of ``count`` processes that meet in ``folder``; all connections are on the loopback interface.

    It returns when all have come, and cannot be interrupted.
    """
    import torch.distributed as dist
    from torch.distributed import FileStore  # type: ignore[attr-defined] # documented, and not in its list

    if device.type == "cuda":
        torch.cuda.set_device(rank)
    with loopback_only():
        store = FileStore(str(folder / "meeting"), count)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=count)
    return dist.group.WORLD


def leave_group() -> None:
    """Leave the group that was joined."""
    import torch.distributed as dist

    dist.destroy_process_group()


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an operation of the group failed because of another process, which has ended or does not answer."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
