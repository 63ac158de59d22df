"""What operations allocate inside themselves, where no dispatcher sees it: each runs once, alone, on real tensors."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from bigstep.memory.measurement import peak_growth
from bigstep.memory.storage_tracker import OperationCall, TensorShape
from bigstep.memory.torch_internals import tree_leaves, tree_map, without_modes

__all__ = ["inner_peak"]

PROBE_SECONDS = 1.5
MARGIN = 64 * 2**20  # bytes of scratch that an operation may take whatever its size
SLACK, SMALL_MARGIN = 4, 4 * 2**20  # the same, where half the samples took a known number of bytes


def inner_peak(calls: list[OperationCall], peak: int, known: Sequence[int | None]) -> tuple[int, list[int | None]]:
    """Run operations that may hold more inside than the dispatcher sees, where that could be the peak.

    Returns the peak and the bytes each call took (None: it was not run); ``known`` are those of half the samples, or empty.
    """
    smaller = known if len(known) == len(calls) else [None] * len(calls)
    bounds = [_bound(call, growth) for call, growth in zip(calls, smaller, strict=True)]
    keys = [f"{call.operation}{call.arguments}{call.named}" for call in calls]
    grown: dict[str, int] = {}
    started = time.perf_counter()
    with without_modes():
        for index in sorted(range(len(calls)), key=lambda index: bounds[index], reverse=True):
            key = keys[index]
            if bounds[index] <= peak or time.perf_counter() - started > PROBE_SECONDS:
                break
            if key not in grown:
                grown[key] = _probe(calls[index])
            peak = max(peak, calls[index].bytes_before + grown[key])
    return peak, [grown.get(key) for key in keys]


def _bound(call: OperationCall, smaller: int | None) -> int:
    if smaller is not None:
        return call.bytes_before + SLACK * smaller + SMALL_MARGIN
    sizes = [item.num_bytes() for item in tree_leaves((call.arguments, call.named)) if isinstance(item, TensorShape)]
    return call.bytes_before + 4 * (sum(sizes) + call.bytes_after - call.bytes_before) + MARGIN


def _probe(call: OperationCall) -> int:
    def build(value: Any) -> Any:
        return value.build() if isinstance(value, TensorShape) else value

    arguments, named = tree_map(build, (call.arguments, call.named))
    try:
        with torch.no_grad():
            return peak_growth(lambda: call.operation(*arguments, **named))
    except RuntimeError:
        return 0
