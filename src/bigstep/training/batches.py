"""The effective batches of an epoch, on the host."""

from collections.abc import Iterator

import numpy as np

from bigstep.data.augmentation import augment
from bigstep.data.batches import Batch, to_tensors
from bigstep.data.order import effective_batches, epoch_order
from bigstep.data.store import Store

__all__ = ["training_batches"]


def training_batches(store: Store, *, size: int, augmentation: str, seed: int, epoch: int) -> Iterator[Batch]:
    """Give the effective batches of an epoch, at most ``size`` samples each, augmented."""
    ids = store.indices(0)
    order = epoch_order(len(ids), seed, epoch)
    for chosen in effective_batches(ids[order], size):
        images = augment(np.asarray(store.images[chosen]), chosen, augmentation, seed, epoch)
        yield to_tensors(images, store.labels[chosen])
