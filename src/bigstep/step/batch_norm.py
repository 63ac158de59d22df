"""BatchNorm under accumulation: finding it, and what becomes of its running statistics.

A layer that normalises by the statistics of its batch sees a micro-batch, not the effective batch. No bookkeeping repairs its
gradient; what can be repaired is that its running statistics move once a micro-batch instead of once a step.

===============  =====================================================================================================
``plain``        torch's own: every micro-batch moves the running statistics
``corrected``    one update a step with the pooled mean and variance of all micro-batches: for a layer whose input does
                 not depend on another such layer, exactly what one pass over the effective batch gives
``frozen``       the running statistics normalise, and stay: the layer treats samples apart, and the law holds
``recalibrated`` as corrected, and at the end recomputed with the final weights, layer by layer
===============  =====================================================================================================
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.step.channel_statistics import ChannelStatistics, pool_all

__all__ = [
    "BATCH_NORMS",
    "BatchLayer",
    "DeferredStatistics",
    "batch_modules",
    "find_batch_layers",
    "freeze_statistics",
]

NORMALISES = "normalises each micro-batch by its own mean and variance"
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class BatchLayer:
    """A layer that looks across the samples of a batch, or may: its name in the model, its class, and why it is listed."""

    name: str
    kind: str
    reason: str

    @property
    def dependent(self) -> str:
        """What depends on the micro-batch size."""
        return "gradients" if self.reason == NORMALISES else "running statistics"


def find_batch_layers(model: nn.Module) -> tuple[BatchLayer, ...]:
    """Find layers in training mode that normalise by their batch or keep statistics of it."""
    names = {module: name for name, module in model.named_modules()}
    return tuple(
        BatchLayer(
            names[module],
            type(module).__name__,
            NORMALISES if isinstance(module, BATCH_NORMS) else "keeps running statistics of the batches it sees",
        )
        for module in batch_modules(model)
    )


def batch_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Return the modules of :func:`find_batch_layers`."""
    for module in model.modules():
        known = isinstance(module, BATCH_NORMS) or getattr(module, "running_mean", None) is not None
        if module.training and known:
            yield module


def freeze_statistics(model: nn.Module) -> None:
    """Switch every BatchNorm to evaluation mode, in which it normalises by its running statistics and keeps them."""
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            module.eval()


@final
class DeferredStatistics:
    """Pools the batch statistics of a step's micro-batches, and moves each BatchNorm's running statistics once.

    In the accumulator, then :meth:`commit` after a step that counts, or :meth:`discard` after one that does not::

        statistics = DeferredStatistics(model)
        accumulator = Accumulator(model, loss, micro_batch_size=16, statistics=statistics)
    """

    def __init__(self, model: nn.Module) -> None:
        """Watch every BatchNorm of ``model`` that tracks statistics."""
        self._layers = {m: ChannelStatistics() for m in model.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats}
        self._pooled: dict[Any, ChannelStatistics] = {}  # of all processes, in earlier calls for the same step
        self._collecting = False
        for layer in self._layers:
            layer.register_forward_pre_hook(self._watch)

    def __contains__(self, layer: nn.Module) -> bool:
        """Return whether the layer is watched."""
        return layer in self._layers

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the running statistics as they are within the block, in forward, backward and recomputed passes.

        A momentum of 0 leaves them as they are but for an activation that is not finite, of which 0 times is NaN.
        """
        pools, pooled = {layer: replace(pool) for layer, pool in self._layers.items()}, self._pooled
        momenta = {layer: layer.momentum for layer in self._layers}
        names = ("running_mean", "running_var", "num_batches_tracked")
        found = [getattr(layer, name) for layer in self._layers for name in names]
        kept = [(buffer, buffer.clone()) for buffer in found if buffer is not None]
        for layer in self._layers:
            layer.momentum = 0.0
        try:
            yield
        except BaseException:
            self._layers, self._pooled = pools, pooled
            raise
        finally:
            for layer, momentum in momenta.items():
                layer.momentum = momentum
            with torch.no_grad():
                for buffer, value in kept:
                    buffer.copy_(value)

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Collect from forward passes within the block; recomputation in a backward pass is outside, and so not counted."""
        self._collecting = True
        try:
            yield
        finally:
            self._collecting = False

    def commit(self) -> None:
        """Move the running statistics by the pooled ones, as one pass over the effective batch would."""
        for layer, pool in self._layers.items():
            pool.merge(self._pooled.get(layer, ChannelStatistics()))
            if pool.count:
                pool.move(layer)
        self.discard()

    def pool(self, add_up: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Pool what was collected here with what other processes collected.

        Args:
            add_up: sums a vector over the processes, in place; it is called twice if any layer is watched.
            device: of the vectors.
        """
        if not self._layers:
            return
        pool_all([(layer.num_features, pool) for layer, pool in self._layers.items()], add_up, device)
        for layer, pool in self._layers.items():
            pool.merge(self._pooled.get(layer, ChannelStatistics()))
        self._pooled = self._layers
        self._layers = {layer: ChannelStatistics() for layer in self._layers}

    def discard(self) -> None:
        """Forget what was collected."""
        self._layers = {layer: ChannelStatistics() for layer in self._layers}
        self._pooled = {}

    def _watch(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._collecting and layer.training:
            self._layers[layer].add(inputs[0].detach())  # type: ignore[index] # only these layers have the hook
