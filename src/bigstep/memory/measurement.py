"""Measured bytes: of torch's CPU allocator by the profiler's allocation events, of a GPU by its allocator's statistics."""

import contextlib
import gc
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bigstep.memory.torch_internals import allocation_events, storage_key, tree_leaves

__all__ = ["held_bytes", "peak_growth", "peak_memory_bytes", "resident_bytes", "restart_peak_memory"]


def peak_growth(function: Callable[[], Any], device: torch.device | None = None) -> int:
    """Run ``function`` and return its peak memory: the largest sum of bytes allocated since its start and not freed.

    On the CPU it is exact if nothing that was allocated before is freed meanwhile.

    Args:
        function: what to run.
        device: whose memory; None is the CPU.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return int(torch.cuda.max_memory_allocated(device)) - before
    held = peak = 0
    with _without_collector():
        events = allocation_events(function)
    for size in _in_order(events):
        held += size
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Collect no garbage within the block: what was allocated before would be freed at some moment, and count."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def held_bytes(*owners: nn.Module | Optimizer | Any) -> int:
    """Return the bytes of the storages of modules, optimizers and tensors, gradients included, each counted once."""
    storages = {storage_key(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in _tensors(owners)}
    return sum(storages.values())


def resident_bytes() -> int:
    """Return the process's resident memory now (0 if the system does not report it)."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() if status.exists() else 0


def restart_peak_memory(device: torch.device) -> None:
    """Reset what :func:`peak_memory_bytes` measures, if the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident_peak_bytes() -> int:
    """Return the process's largest resident memory so far, or since the restart."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held so far: torch's on a GPU, the process's resident memory on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _resident_peak_bytes()


def _tensors(owners: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for owner in owners:
        if owner is None:
            continue
        if isinstance(owner, nn.Module):
            found += [*owner.parameters(), *owner.buffers()]
            found += [parameter.grad for parameter in owner.parameters() if parameter.grad is not None]
        elif isinstance(owner, Optimizer):
            found += [item for item in tree_leaves(list(owner.state.values())) if isinstance(item, torch.Tensor)]
        else:
            found += [item for item in tree_leaves(owner) if isinstance(item, torch.Tensor)]
    return found


def _in_order(threads: list[list[Any]]) -> list[int]:
    """Return the bytes of each allocation (frees are negative) of all threads."""
    start = next(event for events in threads for event in events if event.name() == "__start_profile")
    found = [
        (start.cpu_elapsed_us(event) if len(threads) > 1 else 0.0, event.cpu_memory_usage())
        for events in threads
        for event in events
        if event.kind() == "memory_alloc"
    ]
    return [size for _, size in sorted(found, key=lambda item: item[0])]
