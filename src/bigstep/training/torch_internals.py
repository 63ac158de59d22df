"""What the training knows of torch's optimizers and compiler that is not public, with its reason.

tests/test_internals.py tries it.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["compiler_problem", "inductor_options", "mark_batch", "without_compiler"]

T = TypeVar("T", bound=Optimizer)
COMPILER = "torch._dynamo"
METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
WRAPPERS = ("inner", "_use_grad")  # inside torch: they import the compiler, for code that is being compiled

COMPILERS = (COMPILER, "torch._inductor")
OPTIONS = {
    "fallback_random": True,  # numbers are drawn by torch's own operations, which can be keyed
    "deterministic": True,  # no choice of code by timing where it changes rounding
}


def inductor_options() -> dict[str, Any]:
    """Return options of torch.compile for code that draws and rounds as it does in the next process."""
    known = torch._inductor.list_options()  # noqa: SLF001 # what torch.compile's own documentation calls
    return {name: value for name, value in OPTIONS.items() if name in known}


def mark_batch(rows: Tensor) -> None:
    """Make the compiler write one code for any number of ``rows`` but one; torch documents it under this name only."""
    torch._dynamo.maybe_mark_dynamic(rows, 0)  # noqa: SLF001


def compiler_problem(error: BaseException) -> str | None:
    """Return the first line of an error of the compiler, which has no public class; None for any other error."""
    kinds = [kind for kind in type(error).__mro__ if kind.__module__.startswith(COMPILERS)]
    return (str(error).strip().splitlines() or [type(error).__name__])[0] if kinds else None


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
