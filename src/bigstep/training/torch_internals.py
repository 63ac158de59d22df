"""What the training knows of torch's optimizers that is not public, with its reason; tests/test_internals.py tries it."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

__all__ = ["without_compiler"]

T = TypeVar("T", bound=Optimizer)
COMPILER = "torch._dynamo"
METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
WRAPPERS = ("inner", "_use_grad")  # inside torch: they import the compiler, for code that is being compiled


@functools.cache
def without_compiler(kind: type[T]) -> type[T]:
    """Return a subclass that is not the one to import torch's compiler, which takes as long as half of torch.

    Every optimizer imports it, though it is needed while `torch.compile` traces only; there is no public way around. Once
    anything else has imported it, and where torch's wrappers have other names, all is as in ``kind``.
    """
    return type(kind.__name__, (kind,), {name: _plain_method(kind, name) for name in METHODS} | {"step": _plain_step(kind)})


def _plain_method(kind: type[Optimizer], name: str) -> Callable[..., Any]:
    usual = getattr(kind, name)

    @functools.wraps(usual)
    def method(self: Optimizer, *args: Any, **options: Any) -> Any:
        return (usual if COMPILER in sys.modules else _plain(usual))(self, *args, **options)

    return method


def _plain_step(kind: type[Optimizer]) -> Callable[..., Any]:
    @functools.wraps(kind.step)
    def step(self: Optimizer, closure: Any = None) -> Any:
        if COMPILER in sys.modules:
            return kind.step(self, closure)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return _plain(kind.step)(self, closure)

    vars(step).pop("hooked", None)  # torch's mark of a step that it has wrapped for its profiler
    return step


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what is inside the wrappers that import the compiler."""
    inside: Callable[..., Any] = inspect.unwrap(function, stop=lambda item: not _imports_compiler(item))
    return inside


def _imports_compiler(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None)
    return hasattr(function, "hooked") or (code is not None and code.co_name in WRAPPERS)
