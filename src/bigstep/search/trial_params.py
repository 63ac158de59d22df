"""The parameters of a trial: params.yaml with the trial's point in it."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from bigstep.config.params import Params
from bigstep.config.yaml_files import apply_overrides
from bigstep.project.parameters import check_params

__all__ = ["as_configured", "trial_params"]


def trial_params(content: dict[str, Any], overrides: Mapping[str, Any]) -> Params:
    """Return the parameters of a training; with BatchNorm the micro-batch is the ghost batch. ``content`` stays as it is.

    Raises:
        ConfigError: they contradict one another.
    """
    params = check_params(content)
    values = as_configured(params, {"hardware.accumulation_steps": None, **overrides})
    if params.search.epochs is not None:
        values["train.epochs"] = params.search.epochs
    triples = tuple((*name.split(".", 1), value) for name, value in values.items())
    return check_params(apply_overrides(deepcopy(content), triples), "a trial")


def as_configured(params: Params, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by name as params.yaml holds them: with BatchNorm the micro-batch size is the ghost batch's."""
    if params.model.norm != "batch":
        return dict(values)
    return {**values, "model.ghost_batch_size": values["hardware.micro_batch_size"], "hardware.micro_batch_size": None}
