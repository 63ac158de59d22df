"""Every private name of torch that the models use, with its reason; tests/test_internals.py tries it."""

import contextlib

import torch

__all__ = ["assert_flag", "preload_export"]


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
