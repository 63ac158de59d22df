"""Tensors by name into a safetensors file."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

__all__ = ["save_tensors"]


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors in the order of their names; the same tensors produce the same bytes.

    Tensors that share memory, as tied weights do, are each written whole: the file format has no other way.
    """
    own: dict[str, Tensor] = {}
    seen: set[tuple[str, int]] = set()
    for name, tensor in sorted(tensors.items()):
        whole = tensor.detach().contiguous()
        memory = (str(whole.device), whole.untyped_storage().data_ptr())
        own[name] = whole.clone() if memory in seen else whole
        seen.add(memory)
    # no metadata: safetensors writes several keys in an order that differs from process to process
    safetensors.torch.save_file(own, path)
