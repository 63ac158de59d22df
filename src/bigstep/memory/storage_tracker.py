"""How many bytes of tensors are alive while operations run, without running them: fake tensors have sizes and no content."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.memory.torch_internals import (
    OPAQUE_POOLING,
    PRIVATE_OPERATIONS,
    FakeTensor,
    TorchDispatchMode,
    in_kernel_invocation_manager,
    storage_key,
    tree_leaves,
)

__all__ = ["OperationCall", "StorageTracker"]

aten = torch.ops.aten
DEVICE = torch.ops.prim.device.default
# what allocates inside itself, where no dispatcher sees it: oneDNN's reordered copies and scratch pads, a copied gradient
OPAQUE = {aten.convolution.default, aten.convolution_backward.default, OPAQUE_POOLING}
# these give one tensor, shaped as the operation's own kernel for tensors without content says; fake tensors ask it too, but
# look for a decomposition and for a cached answer first, which takes ten times as long
PLAIN = {
    *PRIVATE_OPERATIONS,
    aten.add.Tensor,
    aten.add_.Tensor,
    aten.addmm.default,
    aten.bmm.default,
    aten.cat.default,
    aten.clone.default,
    aten.detach.default,
    aten.empty_like.default,
    aten.expand.default,
    aten.mm.default,
    aten.mul.Tensor,
    aten.mul_.Tensor,
    aten.permute.default,
    aten.relu_.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.sum.dim_IntList,
    aten.t.default,
    aten.transpose.int,
    aten.view.default,
    aten.zeros_like.default,
}


def _plain(operation: Any, args: Any, named: Any) -> Any:
    leaves = [leaf for argument in args for leaf in (argument if isinstance(argument, (list, tuple)) else (argument,))]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    mode, device = getattr(tensors[0], "fake_mode", None), getattr(tensors[0], "fake_device", None)
    if mode is None or "device" in named or not all(_contentless(tensor, device) for tensor in tensors):
        return operation(*args, **named)
    with in_kernel_invocation_manager(mode):
        result = operation(*args, **named)
    return result if isinstance(result, FakeTensor) else FakeTensor(mode, result, device)


def _contentless(tensor: Tensor, device: Any) -> bool:
    return type(tensor) is FakeTensor and tensor.constant is None and tensor.fake_device == device


def _like(tensor: Tensor) -> Any:
    return _plain(aten.empty_like.default, (tensor,), {})


def _batch_norm(images: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: Any, *rest: Any) -> Any:
    if not training or images.device.type != "cpu":
        return aten.native_batch_norm.default(images, weight, bias, mean, variance, training, *rest)
    kept = images.new_empty(images.shape[1], dtype=images.dtype if weight is None else weight.dtype)
    return _like(images), kept, _like(kept)


def _batch_norm_backward(gradient: Tensor, images: Tensor, weight: Any, *rest: Any) -> Any:
    if weight is None or not all(rest[-1]) or images.device.type != "cpu":
        return aten.native_batch_norm_backward.default(gradient, images, weight, *rest)
    return _like(images), _like(weight), _like(weight)


def _group_norm(images: Tensor, weight: Any, bias: Any, count: Any, channels: Any, size: Any, groups: Any, eps: Any) -> Any:
    if images.device.type != "cpu":
        return aten.native_group_norm.default(images, weight, bias, count, channels, size, groups, eps)
    kept = images.new_empty((count, groups), dtype=images.dtype if weight is None else weight.dtype)
    return _like(images), kept, _like(kept)


def _group_norm_backward(gradient: Tensor, images: Tensor, mean: Tensor, inverse: Tensor, weight: Any, *rest: Any) -> Any:
    if weight is None or not all(rest[-1]) or images.device.type != "cpu":
        return aten.native_group_norm_backward.default(gradient, images, mean, inverse, weight, *rest)
    return _like(images), _like(weight), _like(weight)


def _backward_of(operation: Any) -> Callable[..., Any]:
    def leave(gradient: Tensor, inputs: Tensor, *rest: Any) -> Any:
        alike = gradient.stride() == inputs.stride() and gradient.dtype == inputs.dtype
        return _like(inputs) if alike else operation(gradient, inputs, *rest)

    return leave


ACTIVATIONS = (
    aten.gelu_backward.default,
    aten.hardsigmoid_backward.default,
    aten.hardswish_backward.default,
    aten.sigmoid_backward.default,
    aten.silu_backward.default,
    aten.threshold_backward.default,
)
# what these leave, said at once: torch's own way to find it takes them apart into a dozen operations, 20 ms each, and
# forgets that a GroupNorm keeps channels last
DIRECT: dict[Any, Callable[..., Any]] = {
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
    **{operation: _backward_of(operation) for operation in ACTIVATIONS},
}


def _run(operation: Any, args: Any, named: Any) -> Any:
    if operation in PLAIN:
        return _plain(operation, args, named)
    return DIRECT[operation](*args) if operation in DIRECT and not named else operation(*args, **named)


@dataclass(frozen=True)
class OperationCall:
    """An operation, its arguments (tensors on no memory), and the bytes alive before it and right after it."""

    operation: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    bytes_before: int
    bytes_after: int


@final
class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
    """Sums the storages that operations within the block leave alive; enter it after ``FakeTensorMode``."""

    def __init__(self) -> None:
        """Start with nothing alive."""
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.current_bytes = 0
        self.peak_bytes = 0
        self.calls: list[OperationCall] = []
        self._alive: dict[int, Any] = {}

    def track(self, value: Any) -> None:
        """Count the storages of all tensors in ``value`` from now until they are freed."""
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.peak_bytes = max(self.peak_bytes, self.current_bytes)

    def track_module(self, module: nn.Module) -> None:
        """Count parameters and buffers."""
        self.track([*module.parameters(), *module.buffers()])

    def restart(self) -> None:
        """Forget the peak and the calls so far, not what is alive."""
        self.peak_bytes = self.current_bytes
        self.calls.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it leaves."""
        del types
        if func is DEVICE and type(args[0]) is FakeTensor and not args[0].fake_mode.in_kernel_invocation:
            return args[0].fake_device  # torch asks twice an operation
        named = kwargs or {}
        before = self.current_bytes
        result = _run(func, args, named)
        self.track(result)
        if func in OPAQUE:
            self.calls.append(OperationCall(func, _described(args), _described(named), before, self.current_bytes))
        return result

    def _add(self, storage: Any) -> None:
        key = storage_key(storage)
        if key not in self._alive:
            size = storage.nbytes()
            self._alive[key] = weakref.ref(storage, lambda _: self._remove(key, size))
            self.current_bytes += size

    def _remove(self, key: int, size: int) -> None:
        self._alive.pop(key, None)
        self.current_bytes -= size


@dataclass(frozen=True)
class TensorShape:
    """A tensor's layout."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def num_bytes(self) -> int:
        """Bytes of its elements."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize

    def build(self) -> Tensor:
        """Make such a tensor of ones, on the CPU."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype).fill_(1)


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return TensorShape(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(_described(item) for item in value)
    if isinstance(value, dict):
        return {key: _described(item) for key, item in value.items()}
    return value
