"""All checks of params.yaml that need no output to be written."""

from collections.abc import Mapping
from typing import Any

from bigstep.config.params import SECTIONS, Params, flatten, parse_params
from bigstep.config.section import code_of
from bigstep.errors import ConfigError
from bigstep.user_code import load_user_code

__all__ = ["check_followed_by_dvc", "check_params", "learning_values"]

NATIVE_SIZES = {"digits": 8, "fashion-mnist": 28, "cifar10": 32, "image-folder": None, "table": None}


def check_params(content: Mapping[str, Any], origin: str = "params.yaml") -> Params:
    """Validate sections, the rules between them, and the model's name and image size.

    Raises:
        ConfigError: one line for each problem.
    """
    params = parse_params(content, origin)
    if params.model.name == "small_cnn":  # checked without loading torch, which takes seconds
        from bigstep.models.limits import check_small_cnn

        check_small_cnn(params.data.image_size or NATIVE_SIZES.get(params.data.source))
    else:
        from bigstep.models.model_names import check_model

        check_model(params.model)
    if not isinstance(params.train.augmentation, str):
        from bigstep.data.transforms import build_transforms

        build_transforms(params.train.augmentation)
    for key, value in (("train.loss", params.train.loss), ("evaluate.metrics", params.evaluate.metrics)):
        for name in code_of(value):
            load_user_code(name, "model", key, "a function or class")
    if params.model.weights is not None and not params.model.weights.startswith("weights/"):
        raise ConfigError(
            f"{origin}: model.weights: expected a file in weights/, which DVC tracks, got {params.model.weights!r}; "
            "copy or link the file there"
        )
    return params


def check_followed_by_dvc(params: Params) -> None:
    """Refuse, where DVC runs the stages, an effective batch that DVC cannot follow.

    Raises:
        ConfigError: one line.
    """
    if params.train.effective_batch_size is None:
        raise ConfigError(
            "train.effective_batch_size: expected a number, since DVC tracks only keys that affect the result, got null; "
            f"write {params.batch.effective_batch_size}, which is micro_batch_size * accumulation_steps"
        )


def learning_values(params: Params) -> dict[str, Any]:
    """Return the keys that decide the result, with the effective batch completed."""
    learning = {section.title for section in SECTIONS if section.learning}
    return {key: value for key, value in flatten(params).items() if key.partition(".")[0] in learning}
