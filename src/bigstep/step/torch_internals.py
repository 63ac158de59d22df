"""Every private name of torch that the step uses, each with its reason; tests/test_internals.py tries them all."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigstep.randomness.torch_internals import all_modules

__all__ = ["all_parameters", "buffers_of", "parameters_of", "scale_all", "vector_norms", "version_of"]


def scale_all(tensors: list[Tensor], factor: float) -> None:
    """Multiply tensors in place, in one call for all as torch's optimizers do; there is no public function for it."""
    torch._foreach_mul_(tensors, factor)


def vector_norms(tensors: list[Tensor]) -> Sequence[Tensor]:
    """Return the 2-norm of each tensor, in one call for all as ``clip_grad_norm_`` does; there is no public function for it."""
    return torch._foreach_norm(tensors)  # noqa: SLF001


def all_parameters(models: Iterable[nn.Module]) -> list[Tensor]:
    """Return the parameters of ``models`` in the order of ``parameters()``, each once, in a fraction of its time."""
    found = dict.fromkeys(item for module in all_modules(models) for item in module._parameters.values())  # noqa: SLF001
    return [parameter for parameter in found if parameter is not None]


def buffers_of(module: nn.Module) -> dict[str, Any]:
    """Return the dictionary of a module's own buffers, in which an assigned buffer is a new object."""
    buffers: dict[str, Any] = module._buffers  # noqa: SLF001
    return buffers


def parameters_of(module: nn.Module) -> dict[str, Any]:
    """Return the dictionary of a module's own parameters, in which an assigned parameter is a new object."""
    parameters: dict[str, Any] = module._parameters  # noqa: SLF001
    return parameters


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place, as far as autograd counts it; documented for custom functions only."""
    return 0 if tensor.is_inference() else int(tensor._version)  # noqa: SLF001
