"""Every private name of torch that the step uses, each with its reason; tests/test_internals.py tries them all."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.utils._python_dispatch import (
    TorchDispatchMode,  # sees each operation; torch documents it, but not in a public module
)

__all__ = ["TorchDispatchMode", "operation_arguments", "remove_kernels", "scale_all", "vector_norms"]


def operation_arguments(operation: Any) -> Sequence[Any]:
    """Return the arguments of an operation's schema, with names and defaults: torch has no public way to ask for them."""
    arguments: Sequence[Any] = operation._schema.arguments  # noqa: SLF001
    return arguments


def remove_kernels(library: Library) -> None:
    """Remove the kernels that a library has registered: it would do so when it is collected, and that may be too late."""
    library._destroy()  # type: ignore[no-untyped-call] # noqa: SLF001


def scale_all(tensors: list[Tensor], factor: float) -> None:
    """Multiply tensors in place, in one call for all as torch's optimizers do; there is no public function for it."""
    torch._foreach_mul_(tensors, factor)


def vector_norms(tensors: list[Tensor]) -> Sequence[Tensor]:
    """Return the 2-norm of each tensor, in one call for all as ``clip_grad_norm_`` does; there is no public function for it."""
    return torch._foreach_norm(tensors)  # noqa: SLF001
