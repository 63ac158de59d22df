"""Activation checkpointing: a block keeps only its input, and is recomputed in the backward pass."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bigstep.config.model import ModelConfig
from bigstep.errors import ConfigError

__all__ = ["checkpoint_blocks"]


def checkpoint_blocks(network: nn.Module, model: ModelConfig) -> int:
    """Make every block of ``network`` checkpoint its activations in training; names and weights do not change.

    Blocks are the parts of a chain (``nn.Sequential``) that have layers of their own: ResNet's, ConvNeXt's, ViT's.

    Returns:
        How many there are.

    Raises:
        ConfigError: there are no blocks, or running a block twice would change running statistics twice.
    """
    if model.norm == "batch" and model.batch_norm_statistics == "plain":
        raise ConfigError(
            "model.batch_norm_statistics: expected corrected, frozen or recalibrated with "
            "hardware.activation_checkpointing, which runs each block twice, got plain; write corrected"
        )
    blocks = _blocks(network)
    if not blocks:
        raise ConfigError(
            f"hardware.activation_checkpointing: expected false with model.name {model.name}, which has no blocks, got true; "
            "write false"
        )
    for block in blocks:
        block.__class__ = _checkpointed(type(block))
    return len(blocks)


def _blocks(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in module.children():
        is_part = isinstance(module, nn.Sequential) and len(list(child.children())) > 0
        found += [child] if is_part else _blocks(child)
    return found


def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    """Derive a class: a copy of the network, as an average of its weights keeps, then checkpoints its own blocks."""

    class Checkpointed(kind):  # type: ignore[misc, valid-type] # whatever the block is
        def forward(self, *inputs: Any) -> Any:
            if not (self.training and torch.is_grad_enabled()):
                return super().forward(*inputs)
            return checkpoint(super().forward, *inputs, use_reentrant=False)

    Checkpointed.__name__ = Checkpointed.__qualname__ = kind.__name__
    return Checkpointed
