"""The machine a stage runs on: device, threads, memory in use."""

import resource
import sys

import torch

from bigstep.config.hardware import Hardware
from bigstep.errors import ConfigError

__all__ = ["MEMORY_FORMATS", "choose_device", "peak_memory_bytes", "set_threads"]

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def choose_device(hardware: Hardware) -> torch.device:
    """Give the device that ``hardware.device`` means here.

    Raises:
        ConfigError: CUDA is asked for and torch sees none.
    """
    available = torch.cuda.is_available()
    if hardware.device == "cuda" and not available:
        raise ConfigError("hardware.device must be a device torch sees, but is cuda, and torch sees none; write auto or cpu")
    return torch.device("cuda" if available and hardware.device != "cpu" else "cpu")


def set_threads(hardware: Hardware) -> None:
    """Let torch use ``hardware.threads`` threads on the CPU."""
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)


def peak_memory_bytes(device: torch.device) -> int:
    """Give the most memory held so far: torch's on a GPU, the process's resident memory on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
