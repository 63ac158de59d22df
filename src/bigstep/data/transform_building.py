"""Transforms of torchvision.transforms.v2 from their names and arguments in params.yaml."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from bigstep.config.yaml_files import nearest
from bigstep.errors import ConfigError
from bigstep.user_code import is_user_code, load_user_function

__all__ = ["build_transforms", "first_line"]

LISTS = ("Compose", "RandomApply", "RandomChoice", "RandomOrder")
NO_BOXES = ("acts on boxes or key points, and a sample is an image without them", "remove it")
REFUSED = {
    "MixUp": ("mixes two samples", "set train.mixup_alpha instead"),
    "CutMix": ("mixes two samples", "set train.cutmix_alpha instead"),
    "FiveCrop": ("returns five images", "use RandomCrop instead"),
    "TenCrop": ("returns ten images", "use RandomCrop instead"),
    "RandomIoUCrop": ("crops by the boxes of an image, and a sample has none of them", "use RandomResizedCrop instead"),
    "Lambda": ("needs a function, which a file cannot hold", "name your own as custom/model/file.py:name"),
    "LinearTransformation": ("needs a matrix, and training images only would be transformed", "remove it"),
    "Normalize": ("normalizes training images only, and the model does it for all", "set data.pixel_statistics instead"),
    "UniformTemporalSubsample": ("acts on videos", "remove it"),
    "ClampBoundingBoxes": NO_BOXES,
    "ClampKeyPoints": NO_BOXES,
    "ConvertBoundingBoxFormat": NO_BOXES,
    "SanitizeBoundingBoxes": NO_BOXES,
    "SanitizeKeyPoints": NO_BOXES,
    "SetClampingMode": NO_BOXES,
}
OWN = "a function, or a class whose objects are called, that transforms one image"
DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def build_transforms(items: Sequence[str | dict[str, dict[str, Any]]]) -> Any:
    """Build the transforms of ``train.augmentation``.

    Args:
        items: each the name of a class in torchvision.transforms.v2, or one such name with its arguments. ``Compose``,
            ``RandomApply``, ``RandomChoice`` and ``RandomOrder`` take such a list as the argument ``transforms``.

    Raises:
        ConfigError: a name is unknown, its arguments are not accepted, or it does not transform one image.
    """
    from torchvision.transforms import v2

    return v2.Compose(_build_list(items))


def _build_list(items: Sequence[str | dict[str, dict[str, Any]]]) -> list[Any]:
    return [_build(name, arguments) for item in items for name, arguments in _named(item)]


def _named(item: Any) -> list[tuple[str, dict[str, Any]]]:
    if isinstance(item, str):
        return [(item, {})]
    if isinstance(item, dict) and item and all(isinstance(value, dict) for value in item.values()):
        return [(str(name), arguments) for name, arguments in item.items()]
    raise ConfigError(f"train.augmentation: expected a name, or {{name: {{argument: value}}}}, got {item!r}; write it so")


def _build(name: str, arguments: dict[str, Any]) -> Any:
    from torchvision.transforms import v2

    if is_user_code(name):
        return load_user_function(name, "train.augmentation", OWN, ("image",), {}, arguments)
    kinds = {key: kind for key, kind in vars(v2).items() if isinstance(kind, type) and issubclass(kind, v2.Transform)}
    kinds.pop("Transform")  # the base of the others
    if name not in kinds:
        raise ConfigError(f"train.augmentation: no transform {name!r} in torchvision.transforms.v2; {_hint(name, kinds)}")
    if name in REFUSED:
        reason, fix = REFUSED[name]
        raise ConfigError(f"train.augmentation: expected transforms of one image, got {name}, which {reason}; {fix}")
    values = _values(name, arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ToTensor's, that another name is preferred
            return kinds[name](**values)
    except Exception as error:  # noqa: BLE001 # whatever torchvision raises, the user's arguments caused it
        raise ConfigError(
            f"train.augmentation: {name} does not accept these arguments ({first_line(error)}); fix them"
        ) from None


def _values(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments as torchvision wants them, where a file has names or lists."""
    values = dict(arguments)
    if name in LISTS and "transforms" in values:
        inner = values["transforms"]
        if not isinstance(inner, (list, tuple)) or not inner:
            raise ConfigError(
                f"train.augmentation: {name}.transforms: expected a list of transforms, got {inner!r}; "
                "write for example [RandomHorizontalFlip]"
            )
        values["transforms"] = _build_list(inner)
    if name in ("ToDtype", "ConvertImageDtype") and "dtype" in values:
        values["dtype"] = _dtype(name, values["dtype"])
    if name == "ToDtype" and values.get("scale") is not True:
        raise ConfigError(
            "train.augmentation: ToDtype.scale: expected true, since floating-point images have values from 0 to 1, "
            f"got {str(values.get('scale', False)).lower()}; write {{ToDtype: {{dtype: float32, scale: true}}}}"
        )
    if name == "AutoAugment" and isinstance(values.get("policy"), str):
        values["policy"] = _policy(values["policy"])
    return values


def _dtype(name: str, value: Any) -> torch.dtype:
    if value in DTYPES.values():
        return value  # type: ignore[no-any-return] # one of them
    if not isinstance(value, str) or value not in DTYPES:
        raise ConfigError(f"train.augmentation: {name}.dtype: expected one of {', '.join(DTYPES)}, got {value!r}; write one")
    return DTYPES[value]


def _policy(value: str) -> Any:
    from torchvision.transforms import v2

    known = {policy.value: policy for policy in v2.AutoAugmentPolicy}
    if value not in known:
        raise ConfigError(
            f"train.augmentation: AutoAugment.policy: expected one of {', '.join(known)}, got {value!r}; write one of them"
        )
    return known[value]


def _hint(name: str, kinds: dict[str, Any]) -> str:
    hint = nearest(name, kinds)
    return hint if hint.startswith("did") else "see torchvision's documentation"


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its class where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
