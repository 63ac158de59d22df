"""Nested batches of tensors: count their samples, cut them, move them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["call_model", "cut_batch", "map_tensors", "num_samples"]


def map_tensors(function: Callable[[Tensor], Any], batch: Any) -> Any:
    """Apply ``function`` to every tensor in nested tuples, lists and dictionaries; anything else stays as it is."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: map_tensors(function, item) for key, item in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, item) for item in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(function, item) for item in batch)
    return batch


def num_samples(batch: Any) -> int:
    """Return the common first dimension of all tensors.

    Raises:
        ValueError: there is no tensor, or their first dimensions differ.
    """
    sizes = sorted({tensor.shape[0] if tensor.ndim else 0 for tensor in _tensors(batch)})
    if len(sizes) != 1:
        raise ValueError(f"batch: expected tensors with the same first dimension, got {sizes}; make them equal")
    return sizes[0]


def cut_batch(batch: Any, part: slice, device: torch.device) -> Any:
    """Return the samples ``part`` of every tensor, on ``device``."""
    return map_tensors(lambda tensor: tensor[part].to(device, non_blocking=True), batch)


def call_model(model: torch.nn.Module, inputs: Any) -> Any:
    """Call with one tensor, the items of a tuple, or the keywords of a dictionary."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    items = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (tuple, list)) else ()
    for item in items:
        yield from _tensors(item)
