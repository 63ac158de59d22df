"""Mean and variance of each channel over many samples, however they are cut into batches, and over processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["ChannelStatistics", "pool_all"]


@dataclass
class ChannelStatistics:
    """Count, mean and sum of squared deviations of each channel, merged by Chan, Golub and LeVeque (1979)."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, values: Tensor) -> None:
        """Add a batch ``(n, channels, ...)``."""
        channels = values.transpose(0, 1).flatten(1).to(torch.float64)  # (channels, everything else)
        count, mean = channels.shape[1], channels.mean(dim=1)
        self.merge(ChannelStatistics(count, mean, (channels - mean[:, None]).square().sum(dim=1)))

    def merge(self, other: "ChannelStatistics") -> None:
        """Add what another one has collected."""
        if not other.count:
            return
        if self.count == 0:
            self.count, self.mean, self.squares = other.count, other.mean, other.squares
            return
        total, shift = self.count + other.count, other.mean - self.mean
        self.mean = self.mean + shift * (other.count / total)
        self.squares = self.squares + other.squares + shift.square() * (self.count * other.count / total)
        self.count = total

    def sums(self, num_channels: int, device: torch.device) -> Tensor:
        """Return the count, and the sum of each channel."""
        sums = torch.zeros(num_channels + 1, dtype=torch.float64, device=device)
        sums[0], sums[1:] = self.count, self.mean * self.count
        return sums

    def move_mean(self, sums: Tensor) -> None:
        """Use the mean of all processes, whose :meth:`sums` are added up in ``sums``, and the squares about it."""
        own, total = self.count, max(float(sums[0]), 1.0)
        mean = sums[1:] / total
        self.squares = torch.zeros_like(mean) + self.squares + own * (mean - self.mean).square()
        self.count, self.mean = int(sums[0]), mean

    @torch.no_grad()
    def move(self, layer: Any) -> None:
        """Move the running statistics of ``layer`` as its own forward pass over all samples would have."""
        layer.num_batches_tracked.add_(1)
        share = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
        layer.running_mean.lerp_(self.mean.to(layer.running_mean.dtype), share)
        layer.running_var.lerp_((self.squares / max(self.count - 1, 1)).to(layer.running_var.dtype), share)


def pool_all(pools: Sequence[tuple[int, ChannelStatistics]], add_up: Callable[[Tensor], Tensor], device: torch.device) -> None:
    """Pool what was collected here with what other processes collected.

    Args:
        pools: each with its number of channels.
        add_up: sums a vector over the processes, in place; it is called twice.
        device: of the vectors.
    """
    sums = torch.cat([pool.sums(count, device) for count, pool in pools])
    wholes = torch.split(add_up(sums), [count + 1 for count, _ in pools])
    for (_, pool), whole in zip(pools, wholes, strict=True):
        pool.move_mean(whole)
    squares = add_up(torch.cat([pool.squares for _, pool in pools]))
    for (_, pool), part in zip(pools, torch.split(squares, [count for count, _ in pools]), strict=True):
        pool.squares = part
