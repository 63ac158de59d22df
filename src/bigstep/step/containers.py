"""Nested containers of a batch: their items, and the tensors in them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["find_tensors", "map_tensors", "parts_of", "rebuilt"]


def map_tensors(function: Callable[[Tensor], Any], batch: Any) -> Any:
    """Apply ``function`` to every tensor in nested containers; anything else stays as it is."""
    if isinstance(batch, Tensor):
        return function(batch)
    parts = parts_of(batch)
    return batch if parts is None else rebuilt(batch, {key: map_tensors(function, item) for key, item in parts})


def find_tensors(batch: Any) -> Iterator[Tensor]:
    """Return every tensor in nested containers."""
    if isinstance(batch, Tensor):
        yield batch
    else:
        for _, item in parts_of(batch) or ():
            yield from find_tensors(item)


def parts_of(batch: Any) -> list[tuple[Any, Any]] | None:
    """Return the items of a container with their keys, or None for anything else."""
    if isinstance(batch, Mapping):
        return list(batch.items())
    if isinstance(batch, (tuple, list)) and not isinstance(batch, torch.Size):
        return list(zip(getattr(batch, "_fields", range(len(batch))), batch, strict=True))
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return [(field.name, getattr(batch, field.name)) for field in dataclasses.fields(batch) if field.init]
    return None


def rebuilt(batch: Any, items: dict[Any, Any]) -> Any:
    """Return a container like ``batch`` with other items."""
    if isinstance(batch, Mapping):
        return items if type(batch) is dict else type(batch)(items)  # type: ignore[call-arg] # as dict, OrderedDict, UserDict do
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(batch, **items)
    return type(batch)(*items.values()) if hasattr(batch, "_fields") else type(batch)(items.values())
