"""Every private name of torch that the models use, with its reason; tests/test_internals.py tries it."""

import torch

__all__ = ["assert_flag"]


def assert_flag(flag: float, text: str) -> None:
    """Raise RuntimeError where ``flag`` is 0, also in an exported model, which keeps no `raise`.

    Asserted on the host: on a GPU an assertion that fails ends the CUDA context, and with it the server. The bare operator,
    because torch.scalar_tensor notes a device, which MLflow moves to the GPU.
    """
    torch.ops.aten._assert_async.msg(torch.ops.aten.scalar_tensor.default(flag), text)  # noqa: SLF001
