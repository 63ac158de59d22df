"""Every private name of torch that the models use, with its reason; tests/test_internals.py tries it."""

import contextlib
import sys
from types import ModuleType
from typing import Any

import torch

from bigstep.runtime.import_lock import import_lock

__all__ = ["assert_flag", "import_torchvision", "preload_export"]

COMPILER = "torch._dynamo.utils"


def import_torchvision() -> ModuleType:
    """Import torchvision without torch's compiler, which takes longer than torchvision itself.

    It needs the compiler only to find out, at some calls, whether a device can compile. A substitute imports it then, and for
    any other use. There is no public way around.
    """
    with import_lock:
        if COMPILER not in sys.modules:
            substitute = ModuleType(COMPILER)
            vars(substitute).update(is_compile_supported=_is_compile_supported, __getattr__=_of_compiler)
            sys.modules[COMPILER] = substitute
        try:
            import torchvision
        finally:
            _remove_substitute()
    return torchvision


def _is_compile_supported(device_type: str) -> bool:
    return bool(_of_compiler("is_compile_supported")(device_type))


def _of_compiler(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    _remove_substitute()
    from torch._dynamo import utils

    return getattr(utils, name)


def _remove_substitute() -> None:
    with import_lock:
        if getattr(sys.modules.get(COMPILER), "is_compile_supported", None) is _is_compile_supported:
            sys.modules.pop(COMPILER, None)


def preload_export() -> None:
    """Import what ``torch.export.export`` imports at its first call, which takes seconds: no public module does so."""
    with contextlib.suppress(ImportError):
        import torch.export._trace  # noqa: F401


def assert_flag(flag: float, text: str) -> None:
    """Raise RuntimeError where ``flag`` is 0, also in an exported model, which keeps no `raise`.

    Asserted on the host: on a GPU an assertion that fails ends the CUDA context, and with it the server. The bare operator,
    because torch.scalar_tensor notes a device, which MLflow moves to the GPU.
    """
    torch.ops.aten._assert_async.msg(torch.ops.aten.scalar_tensor.default(flag), text)  # noqa: SLF001
