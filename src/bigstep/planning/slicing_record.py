"""Speed and memory over the micro-batch size, as a run's page shows them."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SLICING", "SlicingRecord"]

SLICING = "slicing.json"  # an artifact of the run, and no output: it depends on the machine


@dataclass(frozen=True)
class SlicingRecord:
    """What was predicted and measured of the slicings that a training could have used, and the one it started with."""

    effective_batch_size: int
    micro_batch_size: int
    memory_format: str
    room_bytes: int | None
    """Of tensors within the budget, as predictions count them; None: there is no limit."""
    predicted: tuple[tuple[int, int], ...]
    """Micro-batch sizes, each with the bytes of tensors at the peak of a step."""
    speeds: Mapping[str, tuple[tuple[int, float], ...]]
    """By memory format: micro-batch sizes, each with the samples per second that were measured; empty where none were."""
