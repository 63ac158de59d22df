"""Networks of the package timm, named ``timm/NAME``; nothing is downloaded and no weights are loaded."""

import re
from typing import Any

from torch import nn

from bigstep.config.model import TIMM, ModelConfig
from bigstep.config.yaml_files import nearest
from bigstep.errors import ConfigError

__all__ = ["build_timm", "check_timm"]

NAME = re.compile(r"[A-Za-z0-9_.]+")
OURS = ("model_name", "num_classes", "in_chans")  # arguments that bigstep gives
REFUSED = (
    *OURS,
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
    "features_only",
)
"""Arguments of ``timm.create_model`` that load weights, or that make something other than a classifier."""


def check_timm(model: ModelConfig) -> None:
    """Refuse a name that timm does not know, and arguments that load weights.

    Raises:
        ConfigError: one line; also where timm is not installed.
    """
    timm, name = _timm(model), model.name.removeprefix(TIMM)
    if not NAME.fullmatch(name) or not timm.is_model(name):
        hint = nearest(name, timm.list_models())
        raise ConfigError(
            f"model.name: expected timm/ and a name of timm.list_models(), got {model.name!r}; "
            f"{hint if hint.startswith('did') else 'write for example timm/resnet18'}"
        )
    for key in model.options:
        if key in REFUSED:
            reason = "which bigstep gives" if key in OURS else "which is not for networks that are trained from the start"
            raise ConfigError(f"model.options: expected arguments of {model.name}, got {key}, {reason}; remove it")


def build_timm(model: ModelConfig, channels: int, num_outputs: int) -> nn.Module:
    """Build the network with fresh weights.

    Raises:
        ConfigError: as :func:`check_timm`; or the network does not accept the options.
    """
    check_timm(model)
    create: Any = _timm(model).create_model
    name, sizes = model.name.removeprefix(TIMM), {"num_classes": num_outputs, "in_chans": channels}
    try:
        network: nn.Module = create(name, pretrained=False, **sizes, **model.options)
    except TypeError as error:
        problem = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"model.options: expected arguments of {model.name}, got: {problem}; correct them") from None
    return network


def _timm(model: ModelConfig) -> Any:
    try:
        import timm
    except ImportError:
        raise ConfigError(
            f"model.name: expected the package timm for {model.name}, got none; install bigstep[timm], or choose another model"
        ) from None
    return timm
