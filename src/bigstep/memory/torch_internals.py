"""Every private name of torch that predicting and measuring memory uses, each with its reason.

tests/test_internals.py tries them all.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._C._autograd import _disable_profiler_legacy, _enable_profiler_legacy
from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig
from torch._subclasses.fake_tensor import (  # tensors with sizes and no content; no public module has them
    FakeCopyMode,
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.utils._python_dispatch import (
    TorchDispatchMode,  # sees each operation; torch documents it, but not in a public module
    _disable_current_modes,
)
from torch.utils._pytree import tree_leaves, tree_map  # of nested arguments; the public pytree of torch is not stable yet

__all__ = [
    "OPAQUE_POOLING",
    "PRIVATE_OPERATIONS",
    "FakeCopyMode",
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "allocation_events",
    "in_kernel_invocation_manager",
    "storage_key",
    "tree_leaves",
    "tree_map",
    "without_modes",
]

# operations whose names start with an underscore; a dispatch mode sees them too
PRIVATE_OPERATIONS = {torch.ops.aten._to_copy.default, torch.ops.aten._unsafe_view.default}  # noqa: SLF001
# makes a copy of the gradient where channels come last, and frees it again
OPAQUE_POOLING = torch.ops.aten._adaptive_avg_pool2d_backward.default  # noqa: SLF001
MEMORY_ONLY = ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig())  # noqa: FBT003


def allocation_events(function: Callable[[], Any]) -> list[list[Any]]:
    """Run ``function`` and return the profiler's events of each thread.

    The public profiler writes lines of its own to stderr, and takes ten times as long to start.
    """
    _enable_profiler_legacy(MEMORY_ONLY)
    try:
        function()
    finally:
        threads: list[list[Any]] = _disable_profiler_legacy()
    return threads


def storage_key(storage: torch.UntypedStorage) -> int:
    """Return a number that tensors of the same storage share: the identity of a storage is public nowhere."""
    return int(storage._cdata)  # noqa: SLF001


def without_modes() -> AbstractContextManager[Any]:
    """Run operations on real tensors within a fake run: no public way switches the modes off."""
    modes: AbstractContextManager[Any] = _disable_current_modes()
    return modes
