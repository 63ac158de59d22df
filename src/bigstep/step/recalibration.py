"""BatchNorm's running statistics, recomputed for the final weights."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from bigstep.step.batch_norm import BATCH_NORMS
from bigstep.step.channel_statistics import ChannelStatistics

__all__ = ["recalibrate"]


def _as_it_is(seen: ChannelStatistics, num_channels: int) -> None:
    """Pool nothing: there is one process."""
    del seen, num_channels


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[Any], Any],
    pool: Callable[[ChannelStatistics, int], None] = _as_it_is,
) -> int:
    """Recompute every BatchNorm's running statistics for the weights as they are, over all ``batches``.

    Layer by layer in the order they run: all earlier ones already normalise by their new statistics, so the result does not
    depend on how the batches are cut. It costs one pass over ``batches`` for each layer.

    Args:
        model: in any mode; it is in evaluation mode afterwards.
        batches: returns the batches, each time it is called.
        forward: runs the model on one batch.
        pool: with several processes, each of which has at least one batch of its own: replaces what a layer, of so many
            channels, has seen here by what it has seen in all of them.

    Returns:
        The number of layers.
    """
    model.eval()
    layers = _in_order(model, batches, forward)
    for layer in layers:
        seen = ChannelStatistics()
        hook = layer.register_forward_pre_hook(lambda _layer, inputs, seen=seen: seen.add(inputs[0]))
        try:
            for batch in batches():
                forward(batch)
        finally:
            hook.remove()
        pool(seen, layer.num_features)
        layer.running_mean.copy_(seen.mean)
        layer.running_var.copy_(seen.squares / max(seen.count - 1, 1))
    return len(layers)


def _in_order(model: nn.Module, batches: Callable[[], Iterable[Any]], forward: Callable[[Any], Any]) -> list[Any]:
    order: list[Any] = []
    watched = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    hooks = [m.register_forward_pre_hook(lambda layer, _inputs: order.append(layer)) for m in watched]
    try:
        forward(next(iter(batches())))
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(order))
