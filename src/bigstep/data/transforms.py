"""Any pipeline of torchvision.transforms.v2, keyed: what a sample becomes is a function of (seed, epoch, sample)."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigstep.config.yaml_files import nearest
from bigstep.data.seeding import derive_key
from bigstep.errors import ConfigError

__all__ = ["build_transforms", "keyed_random", "transform_sample"]


def build_transforms(items: Sequence[str | dict[str, dict[str, Any]]]) -> Any:
    """Build the transforms of ``train.augmentation``.

    Args:
        items: each the name of a class in torchvision.transforms.v2, or one such name with its arguments.

    Raises:
        ConfigError: a name is unknown, or its arguments are refused.
    """
    from torchvision.transforms import v2

    return v2.Compose([_build(name, arguments) for item in items for name, arguments in _named(item)])


def transform_sample(transforms: Any, image: Tensor, seed: int, epoch: int, index: int) -> Tensor:
    """Transform one image, uint8 ``(channels, size, size)``; numbers from 0 to 255 come out, of the same shape.

    Raises:
        ConfigError: the transforms change the shape.
    """
    from torchvision.tv_tensors import Image

    with keyed_random(derive_key("augment", seed, epoch, index)):
        result: Tensor = transforms(Image(image)).as_subclass(Tensor)
    if result.shape != image.shape:
        raise ConfigError(
            f"train.augmentation: expected images of shape {tuple(image.shape)}, got {tuple(result.shape)}; "
            "end with a crop or resize to that size"
        )
    return result.float() * 255 if result.is_floating_point() else result


@contextmanager
def keyed_random(key: int) -> Iterator[None]:
    """Seed torch's, Python's and NumPy's global generators by ``key`` within the block, and restore them."""
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 # users' code may draw from it
    torch.default_generator.manual_seed(key)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002 # as above
    try:
        yield
    finally:
        torch.random.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002 # as above


def _named(item: str | dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(item, {})] if isinstance(item, str) else list(item.items())


def _build(name: str, arguments: dict[str, Any]) -> Any:
    from torchvision.transforms import v2

    kinds = {key: kind for key, kind in vars(v2).items() if isinstance(kind, type) and issubclass(kind, v2.Transform)}
    if name not in kinds:
        raise ConfigError(f"train.augmentation: no transform {name!r} in torchvision.transforms.v2; {_hint(name, kinds)}")
    try:
        return kinds[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"train.augmentation: {name} does not accept these arguments ({str(error).splitlines()[0]}); fix them"
        ) from None


def _hint(name: str, kinds: dict[str, Any]) -> str:
    hint = nearest(name, kinds)
    return hint if hint.startswith("did") else "see torchvision's documentation"
