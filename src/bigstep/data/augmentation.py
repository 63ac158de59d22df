"""Random mirror and shift of each image, keyed by (seed, epoch, sample): the same wherever the sample lands in a batch."""

import numpy as np
from numpy.typing import NDArray

from bigstep.data.seeding import derive_key, random_bits

__all__ = ["augment"]


def augment(images: NDArray[np.uint8], ids: NDArray[np.int64], kind: str, seed: int, epoch: int) -> NDArray[np.uint8]:
    """Augment a batch.

    Args:
        images: shape ``(n, size, size, channels)``.
        ids: the sample's index in the store, shape ``(n,)``.
        kind: ``none``, ``flip`` (left to right), ``shift`` (up to one eighth of the size each way, black behind) or
            ``shift-flip``.
        seed: of the training.
        epoch: counted from 0.
    """
    if kind == "none":
        return images
    size = images.shape[1]
    reach = max(1, size // 8) if "shift" in kind else 0
    words = random_bits(derive_key("augment", seed, epoch), ids, 3)
    shifts = (words[:, :2] % np.uint64(2 * reach + 1)).astype(np.int64) - reach
    mirrored = (words[:, 2] & np.uint64(1)).astype(bool) & ("flip" in kind)
    result = np.zeros_like(images)
    for image, target, (down, right), mirror in zip(images, result, shifts, mirrored, strict=True):
        source = image[:, ::-1] if mirror else image
        target[_to(down, size), _to(right, size)] = source[_to(-down, size), _to(-right, size)]
    return result


def _to(shift: int, size: int) -> slice:
    return slice(max(0, shift), size + min(0, shift))
