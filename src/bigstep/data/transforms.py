"""Any pipeline of torchvision.transforms.v2, keyed: what a sample becomes is a function of (seed, epoch, sample)."""

import functools
import random
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigstep.data.seeding import derive_key
from bigstep.data.transform_building import build_transforms, first_line
from bigstep.errors import ConfigError
from bigstep.user_places import user_code_line

__all__ = ["build_transforms", "check_transforms", "transform_batch", "transform_sample"]

FAR = 8.0  # from 0, which noise on fractions does not reach, nor normalised pixels
ALLOCATOR = "DefaultCPUAllocator"  # names itself where memory ran out


def check_transforms(items: Sequence[str | dict[str, dict[str, Any]]], images: Sequence[Tensor], seed: int) -> None:
    """Run the transforms of ``train.augmentation`` on some images, twice; also with every random choice made, and with none.

    Args:
        items: as of :func:`build_transforms`.
        images: uint8 ``(channels, size, size)``.
        seed: of the training.

    Raises:
        ConfigError: they do not accept such images, do not always return images of the same shape and type, or return another
            one for the same sample.
    """
    dtypes = set()
    for p in (None, 1.0, 0.0):
        transforms = build_transforms(items)
        if p is not None:
            _force(transforms, p)
        found = [transform_sample(transforms, image, seed, 0, index) for index, image in enumerate(images)]
        dtypes |= {image.dtype for image in found}
        if p is None:
            _check_keyed(transforms, images, found, seed)
        _check_range(found)
    if len(dtypes) > 1:
        raise ConfigError(
            "train.augmentation: expected either always uint8 or always floating-point images, got both, by chance; "
            "end with {ToDtype: {dtype: uint8, scale: true}}"
        )


def _check_range(found: Sequence[Tensor]) -> None:
    """Check results, 255 times the fractions that a transform returned: noise leaves 0 to 1, whole pixels are far from it."""
    floating = [image for image in found if image.is_floating_point()]
    if not floating:
        return
    least, most = (float(value) / 255 for value in torch.stack(floating).aminmax())
    if not (least >= -FAR and most <= FAR):  # or NaN
        raise ConfigError(
            f"train.augmentation: expected floating-point images of fractions from 0 to 1, got {least:g} to {most:g}; "
            "divide by 255, or return uint8"
        )


def _check_keyed(transforms: Any, images: Sequence[Tensor], found: Sequence[Tensor], seed: int) -> None:
    """Transform again, from the last image to the first: what a transform counts or draws for itself then differs."""
    for index in reversed(range(len(images))):
        again = transform_sample(transforms, images[index], seed, 0, index)
        if not torch.equal(again.nan_to_num(), found[index].nan_to_num()):
            raise ConfigError(
                "train.augmentation: expected transforms that return the same image for the same seed, epoch and sample, got "
                "another one the second time; draw from the global generators of torch, NumPy or Python, and count nothing"
            )


def transform_sample(transforms: Any, image: Tensor, seed: int, epoch: int, index: int) -> Tensor:
    """Transform one image as :func:`transform_batch` does several; it is not changed."""
    (found,) = transform_batch(transforms, image.clone()[None], seed, epoch, [index])
    return found


def transform_batch(transforms: Any, images: Tensor, seed: int, epoch: int, indices: Sequence[int]) -> list[Tensor]:
    """Transform each image of a batch, keyed by its own index; numbers from 0 to 255 come out, of the same shapes.

    Args:
        transforms: of :func:`build_transforms`.
        images: uint8 ``(n, channels, size, size)``, which the transforms may change.
        seed: of the training.
        epoch: counted from 0.
        indices: of the samples, ``n`` of them.

    Raises:
        ConfigError: the transforms fail, change the shape, or return something other than an image.
    """
    alone = _draw_from_torch_only(transforms)
    with _preserved_generators(torch_only=alone):
        return [_transform(transforms, images[place], (seed, epoch, index), alone) for place, index in enumerate(indices)]


def _transform(transforms: Any, image: Tensor, key: tuple[int, int, int], torch_only: bool) -> Tensor:  # noqa: FBT001 # short
    from torchvision.tv_tensors import Image

    _seed_generators(derive_key("augment", *key), torch_only=torch_only)
    shape = image.shape
    try:
        found = transforms(image if torch_only else Image(image))
    except Exception as error:  # whatever torchvision raises, in one line
        if isinstance(error, MemoryError) or ALLOCATOR in str(error):
            raise
        own = user_code_line(error)
        found = own or f"from {_culprit(error)}: {first_line(error)}; change its arguments or what comes before it"
        raise ConfigError(
            f"train.augmentation: expected transforms that accept images of shape {tuple(shape)}, got {found}"
        ) from None
    if type(found) is Tensor and found.dtype == torch.uint8 and found.shape == shape:
        return found
    _check_result(found, image)
    result: Tensor = found.as_subclass(Tensor)
    return result.float() * 255 if result.is_floating_point() else result


def _check_result(result: Any, image: Tensor) -> None:
    if not isinstance(result, Tensor) or not (result.dtype == torch.uint8 or result.is_floating_point()):
        found = (
            str(result.dtype).removeprefix("torch.")
            if isinstance(result, Tensor)
            else f"an object of class {type(result).__name__}"
        )
        raise ConfigError(
            f"train.augmentation: expected uint8 or floating-point numbers in the end, got {found}; end with ToImage"
        )
    if result.shape != image.shape:
        fix = "end with a crop or resize to that size"
        if result.shape[:-2] != image.shape[:-2]:
            fix = "leave out what changes the number of channels, or set data.channels"
        raise ConfigError(
            f"train.augmentation: expected images of shape {tuple(image.shape)}, got {tuple(result.shape)}; {fix}"
        )


def _seed_generators(key: int, *, torch_only: bool) -> None:
    torch.default_generator.manual_seed(key)
    if not torch_only:
        random.seed(key)
        np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002 # a transform may draw from it


@contextmanager
def _preserved_generators(*, torch_only: bool) -> Iterator[None]:
    """Restore the global generators: once a batch, since reading NumPy's takes as long as a transform."""
    state = torch.random.get_rng_state()
    others = None if torch_only else (random.getstate(), np.random.get_state())  # noqa: NPY002 # as above
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
        if others is not None:
            random.setstate(others[0])
            np.random.set_state(others[1])  # noqa: NPY002 # as above


def _draw_from_torch_only(transforms: Any) -> bool:
    """Return whether transforms are torchvision's, which draw from torch; seeding the other generators takes time."""
    inner = getattr(transforms, "transforms", ())
    own = type(transforms).__module__.startswith("torchvision.transforms.v2")
    return own and _torchvision_draws_from_torch() and all(map(_draw_from_torch_only, inner))


@functools.cache
def _torchvision_draws_from_torch() -> bool:
    """Return whether no module of torchvision's transforms has Python's or NumPy's generator."""
    modules = [module for name, module in sys.modules.items() if name.startswith("torchvision.transforms.v2")]
    return not any(value is random or value is np.random for module in modules for value in vars(module).values())


def _force(transforms: Any, p: float) -> None:
    """Set the probability of every transform that is applied now and then, and make choices equally likely."""
    found = getattr(transforms, "p", None)
    if isinstance(found, float) and 0 < found < 1:
        transforms.p = p
    elif isinstance(found, list):
        transforms.p = [float(share > 0) / sum(other > 0 for other in found) for share in found]
    for inner in getattr(transforms, "transforms", ()):
        _force(inner, p)


def _culprit(error: Exception) -> str:
    """Return the name of the innermost transform that was running."""
    from torchvision.transforms import v2

    running = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [type(item).__name__ for item in running if isinstance(item, v2.Transform)][-1]
