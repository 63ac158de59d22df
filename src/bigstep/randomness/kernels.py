"""Torch's operations that draw random numbers, handed to another source on the threads that ask for it.

The kernels are registered once for the process, at a dispatch key that nothing else uses, and a thread switches that key on
for itself. Every other thread, and everything outside :func:`drawing_from`, runs torch's own kernels and generators. The
source lies in torch's thread-local stash, which the engine of autograd carries into its own threads, as it does the key.
Operations that are built of others (``rand``, ``dropout``, recurrent layers, attention) reach these kernels by themselves.
"""

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from bigstep.errors import RandomnessError
from bigstep.randomness.counter_rng import Words, bernoulli_mask, normal_values, uniform_values
from bigstep.randomness.torch_internals import (
    get_thread_object,
    is_compiling,
    is_traced,
    mode_is_on,
    operation_arguments,
    register_mode_kernels,
    set_thread_object,
    switch_mode,
)

__all__ = ["IGNORED", "KEYED", "REFUSED", "RandomSource", "drawing_from"]

SOURCE = "bigstep.random_source"  # name of the stashed object
INDUCTOR = f"torch{os.sep}_inductor{os.sep}"  # part of the path of what calls the code that inductor wrote
_registering = threading.Lock()
_registered: list[bool] = []

REFUSED = (
    "_cudnn_attention_forward",
    "_cudnn_rnn",
    "_efficient_attention_forward",
    "_flash_attention_forward",
    "_flash_attention_forward.quantized",
    "_fused_dropout",
    "_sample_dirichlet",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention.quantized",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
    "_standard_gamma",
    "_triton_scaled_dot_attention",
    "binomial",
    "cauchy_",
    "geometric_",
    "log_normal_",
    "miopen_rnn",
    "multinomial",
    "normal.Tensor_Tensor",
    "normal.Tensor_float",
    "normal.float_Tensor",
    "poisson",
    "random_",
    "random_.from",
    "random_.to",
    "randperm",
    "randperm.generator",
    "rrelu_with_noise",
    "rrelu_with_noise_",
)
"""Operations that draw and cannot be keyed by sample; those with a share to drop pass where it is zero."""

CALLED_BY = {"random_.from": "randint", "random_.to": "randint", "random_": "random_ of whole numbers"}

IGNORED = (
    "_cudnn_attention_backward",
    "_cudnn_init_dropout_state",
    "_fill_mem_eff_dropout_mask_",
    "_flash_attention_forward_no_dropout_inplace",
    "_fused_sdp_choice",
    "_lstm_mps",
    "_nested_tensor_softmax_with_shape",
    "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_cudnn_attention_backward",
    "_scaled_dot_product_efficient_attention_backward",
)
"""Operations that torch marks as drawing and that draw nothing of their own here: backward passes, choices, other devices."""


class RandomSource(Protocol):
    """Where the numbers come from."""

    def draw(self, operation: str, shape: torch.Size, values: Callable[[Words, int], Tensor]) -> Tensor:
        """Draw a tensor of ``shape``; ``values(words, count)`` returns ``(n, count)`` numbers."""
        ...


@contextmanager
def drawing_from(source: RandomSource) -> Iterator[None]:
    """Draw every random number of this thread from ``source`` within the block, and of backward passes started in it."""
    _register()
    was_on = mode_is_on()
    before = get_thread_object(SOURCE) if was_on else None
    set_thread_object(SOURCE, source)
    switch_mode(on=True)
    try:
        yield
    finally:
        switch_mode(on=was_on)
        set_thread_object(SOURCE, before)


def _register() -> None:
    if _registered:
        return
    with _registering:
        if not _registered:
            refusing = {name: partial(_refuse, name) for name in REFUSED}
            kernels = {name: partial(_keyed, name, kernel) for name, kernel in KEYED.items()} | refusing
            register_mode_kernels({name: _outside_mode(kernel) for name, kernel in kernels.items()})
            _registered.append(True)


def _outside_mode(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Run a kernel with torch's own operations."""

    def call(*args: Any, **named: Any) -> Any:
        switch_mode(on=False)
        try:
            return kernel(*args, **named)
        finally:
            switch_mode(on=True)

    return call


def _keyed(name: str, kernel: Callable[..., Any], *args: Any, generator: Any = None, **named: Any) -> Any:
    if is_compiling() or is_traced(args[0]):  # a compiler looks at the operation
        return _operation(name)(*args, **named)
    if generator is not None and generator is not torch.default_generator:
        raise RandomnessError(
            f"model: expected random calls from torch's default generator, got {name} with a generator of its own; "
            "leave out the seed to draw natively, or drop the generator"
        )
    return kernel(get_thread_object(SOURCE), *args, **named)


def _refuse(name: str, *args: Any, **named: Any) -> Any:
    operation = _operation(name)
    if is_compiling() or is_traced(*args) or not _draws(operation, args, named):
        return operation(*args, **named)
    if _in_compiled_code():
        raise RandomnessError(
            "model: expected random calls that can be keyed by sample, got compiled code (by inductor), which draws its own "
            "numbers; compile with options={'fallback_random': True} or backend='aot_eager', or leave out the seed"
        )
    raise RandomnessError(
        f"model: expected random calls that can be keyed by sample, got {CALLED_BY.get(name, name)}, which cannot; "
        "leave out the seed to draw natively, or replace the layer"
    )


def _in_compiled_code() -> bool:
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and INDUCTOR not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def _operation(name: str) -> Any:
    base, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, base), overload or "default")


def _draws(operation: Any, args: Any, named: dict[str, Any]) -> bool:
    """Return whether a call draws: fused attention and recurrent layers do so only where their share to drop is above zero."""
    arguments = operation_arguments(operation)
    values = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    values |= dict(zip((argument.name for argument in arguments), args, strict=False)) | named
    share = values.get("dropout_p", values.get("dropout"))
    return share is None or bool(share and values.get("train", True))


def _bernoulli_(source: RandomSource, target: Tensor, p: float = 0.5) -> Tensor:
    return target.copy_(source.draw("bernoulli_", target.shape, lambda words, count: bernoulli_mask(words, count, p)))


def _bernoulli_tensor(source: RandomSource, target: Tensor, p: Tensor) -> Tensor:
    return target.copy_(_uniform(source, "bernoulli_", target.shape, torch.float64) < p.to(torch.float64))


def _uniform_(source: RandomSource, target: Tensor, start: float = 0.0, end: float = 1.0) -> Tensor:
    return target.copy_(_uniform(source, "uniform_", target.shape, target.dtype) * (end - start) + start)


def _exponential_(source: RandomSource, target: Tensor, lambd: float = 1.0) -> Tensor:
    dtype = _wide(target.dtype)
    drawn = _uniform(source, "exponential_", target.shape, dtype)
    positive = drawn.clamp(min=torch.finfo(dtype).eps / 4)  # torch draws no zero either
    return target.copy_(-torch.log1p(-positive) / lambd)


def _normal_(source: RandomSource, target: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    dtype = _wide(target.dtype)
    values = source.draw("normal_", target.shape, lambda words, count: normal_values(words, count, dtype))
    return target.copy_(values * std + mean)


def _native_dropout(
    source: RandomSource,
    inputs: Tensor,
    p: float,
    train: bool | None,  # noqa: FBT001 # torch's schema
) -> tuple[Tensor, Tensor]:
    if p == 0 or train is False:
        return inputs.clone(), torch.ones_like(inputs, dtype=torch.bool)
    mask = source.draw("native_dropout", inputs.shape, lambda words, count: bernoulli_mask(words, count, 1 - p))
    return inputs * mask * (1 / (1 - p) if p < 1 else 0.0), mask


def _uniform(source: RandomSource, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return source.draw(name, shape, lambda words, count: uniform_values(words, count, dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


KEYED: dict[str, Callable[..., Any]] = {
    "bernoulli_.float": _bernoulli_,
    "bernoulli_.Tensor": _bernoulli_tensor,
    "exponential_": _exponential_,
    "native_dropout": _native_dropout,
    "normal_": _normal_,
    "uniform_": _uniform_,
}
"""The operations that draw from the source, and how."""
