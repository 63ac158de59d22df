"""Samples of a store as batches of tensors on the host."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigstep.data.order import effective_batches
from bigstep.data.split import Split
from bigstep.data.store import Store

__all__ = ["ImageBatch", "ordered_batches", "to_tensors"]

ImageBatch = tuple[Tensor, Tensor]  # images uint8 (n, channels, size, size) or arrays as stored; labels as stored


def ordered_batches(store: Store, split: Split, size: int, part: slice = slice(None)) -> Iterator[ImageBatch]:
    """Yield the samples of a split in order, or of a part of it, at most ``size`` at a time."""
    for chosen in effective_batches(store.indices(split)[part], size):
        yield to_tensors(np.asarray(store.images[chosen]), store.labels[chosen], is_image=store.manifest.is_image)


def to_tensors(images: NDArray[Any], labels: NDArray[Any], *, is_image: bool = True) -> ImageBatch:
    """Share the memory of images ``(n, size, size, channels)``, or of other samples, and of labels ``(n, ...)``."""
    samples = torch.from_numpy(images)
    return samples.permute(0, 3, 1, 2) if is_image else samples, torch.from_numpy(labels)
