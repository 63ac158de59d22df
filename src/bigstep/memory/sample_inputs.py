"""Inputs of a model made from shapes: of one tensor, or of nested tuples and dictionaries, as a batch has them."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bigstep.step.containers import map_tensors

__all__ = ["DtypeTree", "ShapeTree", "build_inputs", "call_model", "check_shapes", "first_samples"]

ShapeTree = Sequence[int] | Mapping[str, "ShapeTree"] | Sequence["ShapeTree"]
IMAGE_NDIM = 3  # channels, height, width
DtypeTree = torch.dtype | None | Mapping[str, "DtypeTree"] | Sequence["DtypeTree"]


def check_shapes(shapes: ShapeTree, dtypes: DtypeTree) -> None:
    """Check that every shape has sizes only, and that the types have the same structure.

    Raises:
        ValueError: they do not.
    """
    _check(shapes, dtypes, "sample_shape", "input_dtype")


def _check(shapes: Any, dtypes: Any, name: str, other: str) -> None:
    if _is_shape(shapes):
        if dtypes is not None and not isinstance(dtypes, torch.dtype):
            raise ValueError(
                f"{other}: expected a torch.dtype or None, got {dtypes!r}; pass the same structure as sample_shape"
            )
        return
    items = _items(shapes)
    if not items:
        raise ValueError(
            f"{name}: expected a shape such as (3, 224, 224), or a dictionary or tuple of shapes, got {shapes!r}; "
            "leave out the batch dimension"
        )
    if dtypes is not None and not isinstance(dtypes, torch.dtype):
        keys = [key for key, _ in _items(dtypes)]
        if sorted(map(str, keys)) != sorted(str(key) for key, _ in items) or isinstance(dtypes, Mapping) != isinstance(
            shapes, Mapping
        ):
            raise ValueError(
                f"{other}: expected one torch.dtype or the structure of {name}, {[key for key, _ in items]}, got {dtypes!r}; "
                "write None for the type of the parameters"
            )
    for key, item in items:
        _check(item, _child(dtypes, key), f"{name}[{key!r}]", f"{other}[{key!r}]")


def build_inputs(
    shapes: ShapeTree,
    dtypes: DtypeTree,
    count: int,
    device: torch.device,
    default: torch.dtype,
    *,
    channels_last: bool = False,
) -> Any:
    """Return tensors of ones for ``count`` samples, in the structure of ``shapes``; a type of None means ``default``.

    With ``channels_last`` images lie in memory as in a decoded file. Grey ones fit both layouts; torch goes by their strides.
    """
    if _is_shape(shapes):
        kind = dtypes if isinstance(dtypes, torch.dtype) else default
        layout = torch.channels_last if channels_last and len(shapes) == IMAGE_NDIM else torch.contiguous_format
        return torch.empty((count, *shapes), dtype=kind, device=device, memory_format=layout).fill_(1)
    build = partial(build_inputs, count=count, device=device, default=default, channels_last=channels_last)
    built = {key: build(item, _child(dtypes, key)) for key, item in _items(shapes)}
    return built if isinstance(shapes, Mapping) else tuple(built.values())


def first_samples(inputs: Any, count: int) -> Any:
    """Return the first samples of each tensor."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[:count]

    return map_tensors(cut, inputs)


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call with one tensor, the items of a tuple, or the keywords of a dictionary, as the accumulator does."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _is_shape(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(type(n) is int and n >= 0 for n in value)


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, (tuple, list)) else []


def _child(dtypes: Any, key: Any) -> Any:
    return dtypes if dtypes is None or isinstance(dtypes, torch.dtype) else dtypes[key]
