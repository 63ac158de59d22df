"""BatchNorm kept, replaced by GroupNorm, or removed."""

import math

from torch import nn

from bigstep.step.batch_norm import BATCH_NORMS

__all__ = ["replace_norms"]

MAX_GROUPS = 32  # Wu and He, Group Normalization, 2018
MIN_GROUP_CHANNELS = 4


def replace_norms(network: nn.Module, norm: str) -> tuple[str, ...]:
    """Replace every BatchNorm in place (``group``, ``none``) or keep it (``batch``); return the names of those found.

    A GroupNorm takes the affine parameters' names, so that weights keep their keys.
    """
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, BATCH_NORMS)]
    for name, module in found:
        if norm != "batch":
            parent = network.get_submodule(name.rpartition(".")[0])
            replacement = nn.Identity() if norm == "none" else nn.GroupNorm(_groups(module.num_features), module.num_features)
            setattr(parent, name.rpartition(".")[2], replacement)
    return tuple(name for name, _ in found)


def _groups(channels: int) -> int:
    wanted = max(1, min(MAX_GROUPS, channels // MIN_GROUP_CHANNELS))
    return math.gcd(channels, wanted) if channels % wanted else wanted
