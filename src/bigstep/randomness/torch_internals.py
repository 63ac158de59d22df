"""Every private name of torch that the random numbers use, each with its reason; tests/test_internals.py tries them all."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import CompileContext, TracingContext
from torch.library import Library, fallthrough_kernel

__all__ = [
    "all_modules",
    "get_thread_object",
    "is_compiling",
    "is_traced",
    "mode_is_on",
    "operation_arguments",
    "register_mode_kernels",
    "set_thread_object",
    "switch_mode",
]

MODE = "TESTING_ONLY_GenericMode"  # a dispatch key above all others of torch, which torch uses in its own tests only
MODE_KEY = torch._C._dispatch_key_parse(MODE)  # noqa: SLF001
_libraries: list[Library] = []  # a library that is collected takes its kernels with it


def all_modules(models: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the modules of ``models`` in the order of ``modules()``, each once, in a tenth of its time."""
    found, waiting = dict[nn.Module, None](), list(models)[::-1]
    while waiting:
        module = waiting.pop()
        if module is not None and module not in found:
            found[module] = None
            waiting.extend(reversed(module._modules.values()))  # type: ignore[arg-type] # noqa: SLF001 # None: a child left out
    return list(found)


def operation_arguments(operation: Any) -> Sequence[Any]:
    """Return the arguments of an operation's schema, with names and defaults: torch has no public way to ask for them."""
    arguments: Sequence[Any] = operation._schema.arguments  # noqa: SLF001
    return arguments


def register_mode_kernels(kernels: Mapping[str, Callable[..., Any]]) -> None:
    """Register kernels for ``aten`` operations at the mode's key, for good; all others pass through it."""
    everything, aten = Library("_", "IMPL", MODE), Library("aten", "IMPL", MODE)  # type: ignore[no-untyped-call]
    everything.fallback(fallthrough_kernel)  # type: ignore[no-untyped-call]
    for name, kernel in kernels.items():
        aten.impl(name, kernel, MODE)  # type: ignore[no-untyped-call]
    _libraries.extend((everything, aten))
    _pass_higher_order_operators()


def _pass_higher_order_operators() -> None:
    """Pass operators that take functions (flex attention, what compilers insert) through the mode's key, later ones too."""
    torch._ops._HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS.append(MODE_KEY)  # noqa: SLF001
    for operator in torch._ops._higher_order_ops.values():  # noqa: SLF001
        operator.fallthrough(MODE_KEY)  # type: ignore[no-untyped-call]


def switch_mode(*, on: bool) -> None:
    """Switch on or off whether operations of this thread pass through the mode's key; there is no public way."""
    torch._C._dispatch_tls_set_dispatch_key_included(MODE_KEY, on)  # noqa: SLF001


def mode_is_on() -> bool:
    """Return whether operations of this thread pass through the mode's key."""
    return bool(torch._C._dispatch_tls_is_dispatch_key_included(MODE_KEY))  # noqa: SLF001


def set_thread_object(name: str, value: object) -> None:
    """Keep an object for this thread; autograd carries it into its own threads, which ``threading.local`` would not reach."""
    torch._C._stash_obj_in_tls(name, value)  # noqa: SLF001


def get_thread_object(name: str) -> Any:
    """Return the object of :func:`set_thread_object`, or None."""
    return torch._C._get_obj_in_tls(name) if torch._C._is_key_in_tls(name) else None  # noqa: SLF001


def is_compiling() -> bool:
    """Return whether a compiler is at work on this thread, its code generator included, which ``torch.compiler`` leaves out."""
    return CompileContext.try_get() is not None or TracingContext.try_get() is not None


def is_traced(*values: Any) -> bool:
    """Return whether a tensor among ``values`` is a placeholder of a compiler; there is no public test for it."""
    return any(isinstance(value, Tensor) and type(value).__name__ in ("FakeTensor", "FunctionalTensor") for value in values)
