"""The group of torch.distributed that the processes of a training on this machine form: gloo on CPUs, NCCL on GPUs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bigstep.runtime.environment import loopback_only

__all__ = ["joined"]


@contextmanager
def joined(folder: Path, rank: int, count: int, device: torch.device) -> Iterator[Any]:
    """Join the group of ``count`` processes that meet in ``folder``; all connections are on the loopback interface."""
    import torch.distributed as dist
    from torch.distributed import FileStore  # type: ignore[attr-defined] # documented, and not in its list

    if device.type == "cuda":
        torch.cuda.set_device(rank)
    with loopback_only():
        store = FileStore(str(folder / "meeting"), count)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=count)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
