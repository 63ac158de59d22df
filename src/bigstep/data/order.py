"""Which sample comes when: a function of (seed, epoch) alone."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bigstep.data.seeding import derive_key

__all__ = ["effective_batches", "epoch_order"]


def epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permute ``range(num_samples)`` for an epoch."""
    return np.random.default_rng(derive_key("order", seed, epoch)).permutation(num_samples)


def effective_batches(order: NDArray[np.int64], effective_batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Cut an order into consecutive effective batches; the last holds what is left."""
    for start in range(0, len(order), effective_batch_size):
        yield order[start : start + effective_batch_size]
