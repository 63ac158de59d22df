"""The machine a stage runs on: device, threads, memory in use."""

import os
import resource
import sys
from pathlib import Path

import psutil
import torch

from bigstep.config.hardware import HardwareConfig
from bigstep.config.params import Params
from bigstep.config.processes import reason_for_one_process
from bigstep.errors import ConfigError

__all__ = [
    "MEMORY_FORMATS",
    "choose_device",
    "count_processes",
    "divided",
    "has_spare_core",
    "headroom_bytes",
    "memory_format",
    "possible_formats",
    "set_threads",
    "total_memory_bytes",
    "usable_cores",
]

_default_threads: list[int] = []
CONTAINER = Path("/sys/fs/cgroup")
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def choose_device(hardware: HardwareConfig) -> torch.device:
    """Return the device that ``hardware.device`` means here.

    Raises:
        ConfigError: CUDA is asked for and torch sees none.
    """
    available = torch.cuda.is_available()
    if hardware.device == "cuda" and not available:
        raise ConfigError(
            "hardware.device: expected a device that torch can use, got cuda (torch finds no GPU); write auto or cpu"
        )
    return torch.device("cuda" if available and hardware.device != "cpu" else "cpu")


def memory_format(hardware: HardwareConfig) -> torch.memory_format:
    """Return torch's name of ``hardware.memory_format``; as long as ``auto`` has chosen none, images are contiguous."""
    return MEMORY_FORMATS.get(hardware.memory_format, torch.contiguous_format)


def possible_formats(hardware: HardwareConfig) -> tuple[str, ...]:
    """Return the memory formats that ``hardware.memory_format`` leaves to choose from, the default first."""
    return tuple(MEMORY_FORMATS) if hardware.memory_format == "auto" else (hardware.memory_format,)


def count_processes(params: Params) -> int:
    """Return the number of processes that share each effective batch: as configured, or one for each GPU.

    Raises:
        ConfigError: the training must stay in one process, or there are fewer GPUs.
    """
    hardware, asked = params.hardware, params.hardware.processes
    if asked == 1:
        return 1
    reason = reason_for_one_process(params.model, params.train, hardware)
    devices = torch.cuda.device_count() if choose_device(hardware).type == "cuda" else 0
    if asked == "auto":
        return 1 if reason is not None else max(1, devices)
    if reason is not None:
        raise ConfigError(reason)
    if devices and asked > devices:
        raise ConfigError(
            f"hardware.processes: expected at most the {devices} GPUs that torch finds, got {asked}; write auto, or "
            "hardware.device cpu"
        )
    return asked


def divided(total: int, processes: int) -> int:
    """Return the share of each process in ``total`` threads or workers: at least one, if there is any."""
    return min(total, max(1, total // processes))


def set_threads(hardware: HardwareConfig, processes: int = 1) -> None:
    """Set torch to ``hardware.threads`` threads on the CPU, or to its default, which ``processes`` share."""
    if not _default_threads:
        _default_threads.append(torch.get_num_threads())
    torch.set_num_threads(_default_threads[0])  # whatever an earlier training in this process has set
    if hardware.threads is not None:
        torch.set_num_threads(divided(hardware.threads, processes))
    elif processes > 1:
        torch.set_num_threads(min(torch.get_num_threads(), divided(os.cpu_count() or 1, processes)))


def has_spare_core(params: Params) -> bool:
    """Return whether a training leaves a core to other processes, with the threads that torch is set to."""
    if choose_device(params.hardware).type == "cuda":
        return True
    return torch.get_num_threads() * count_processes(params) < usable_cores()


def usable_cores() -> int:
    """Return the cores that this process may run on; two threads of one core count once."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def total_memory_bytes(device: torch.device) -> int:
    """Return the memory of the GPU, or of the machine or the container that holds this process, free or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min(int(psutil.virtual_memory().total), _container_limit())


def headroom_bytes() -> int:
    """Return the bytes this process may still take: of available memory, of its container's and its own address-space limit."""
    found = [int(psutil.virtual_memory().available)]
    used = CONTAINER / "memory.current"
    if used.exists():
        found.append(_container_limit() - int(used.read_text()))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(limit - int(psutil.Process().memory_info().vms))
    return min(found)


def _container_limit() -> int:
    path = CONTAINER / "memory.max"
    text = path.read_text().strip() if path.exists() else "max"
    return sys.maxsize if text == "max" else int(text)
