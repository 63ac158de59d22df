"""The effective batches of an epoch, on the host: the same whatever the number of workers."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from bigstep.config.train import TrainConfig
from bigstep.data.augmentation import augment
from bigstep.data.order import effective_batches, epoch_order
from bigstep.data.ordered_batches import ImageBatch, to_tensors
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.data.transforms import build_transforms, transform_batch
from bigstep.errors import ConfigError, DataError
from bigstep.training.prefetch import prefetched
from bigstep.training.shares import BatchShare, WholeBatch

__all__ = ["TrainingBatches"]


@final
class TrainingBatches:
    """The training images of a store, augmented, in effective batches of at most ``size`` samples.

    Sample order is a function of (seed, epoch), each sample's augmentation of (seed, epoch, sample). The built-in kinds are
    computed on whole batches in this process; a list of transforms runs image by image in ``num_workers`` processes.
    """

    def __init__(
        self,
        store: Store,
        train: TrainConfig,
        size: int,
        num_workers: int | None = None,
        *,
        pinned: bool = False,
        share: BatchShare | None = None,
    ) -> None:
        """Prepare.

        Args:
            store: the images.
            train: the section ``train``.
            size: samples of a batch.
            num_workers: None takes half the cores for a list of transforms, 0 none beside this process.
            pinned: for a GPU: batches lie in pinned memory, and the next one is prepared while it computes.
            share: of this process, where it is one of several; a batch without samples is then an empty one.
        """
        self.store = store
        self.train = train
        self.size = size
        self._pinned, self._share = pinned, share
        self._ids = store.indices(Split.TRAIN)
        self._loader: DataLoader[Any] | None = None
        if not isinstance(train.augmentation, str):
            workers = max(1, (os.cpu_count() or 1) // 2) if num_workers is None else num_workers
            self._order = _EpochOrder()
            self._loader = DataLoader(
                _Transformed(store.paths.root, train.augmentation, train.seed),
                batch_sampler=self._order,
                num_workers=workers,
                collate_fn=_collated,
                pin_memory=pinned,
                persistent_workers=workers > 0,
                generator=torch.Generator(),  # its own: one drawn from torch's would move dropout without keys
            )

    def __len__(self) -> int:
        """Count the effective batches of an epoch."""
        return (len(self._ids) + self.size - 1) // self.size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch, counted from 0, from the batch ``start`` on: images and labels.

        With a share those of this process, and a :class:`WholeBatch`.
        """
        order = epoch_order(len(self._ids), self.train.seed, epoch)
        batches = list(effective_batches(self._ids[order], self.size))[start:]
        if self._share is None:
            yield from self._made(batches, epoch)
            return
        own = [chosen[self._share.positions(len(chosen))] for chosen in batches]
        with closing(self._made([chosen for chosen in own if len(chosen)], epoch)) as made:
            for chosen, mine in zip(batches, own, strict=True):
                images, labels = next(made) if len(mine) else (torch.zeros(0), torch.zeros(0))
                whole = WholeBatch(torch.from_numpy(np.asarray(self.store.labels[chosen])), self._share.sizes(len(chosen)))
                yield images, labels, whole

    def _made(self, batches: list[NDArray[np.int64]], epoch: int) -> Generator[ImageBatch]:
        if self._loader is None:
            made = (self._augmented(chosen, epoch) for chosen in batches)
            yield from prefetched(made, _pin) if self._pinned else made
        else:
            self._order.epoch, self._order.batches = epoch, batches
            yield from self._loaded()

    def _loaded(self) -> Iterator[ImageBatch]:
        try:
            yield from self._loader or ()
        except (ConfigError, DataError) as error:  # from another process, with its traceback as the text
            kind = type(error)
            raise kind(str(error).strip().splitlines()[-1].removeprefix(f"{kind.__module__}.{kind.__qualname__}: ")) from None

    def _augmented(self, chosen: NDArray[np.int64], epoch: int) -> ImageBatch:
        images, is_image = np.asarray(self.store.images[chosen]), self.store.manifest.is_image
        if is_image:
            images = augment(images, chosen, str(self.train.augmentation), self.train.seed, epoch)
        return to_tensors(images, self.store.labels[chosen], is_image=is_image)


def _pin(batch: ImageBatch) -> ImageBatch:
    images, labels = batch
    return images.pin_memory(), labels.pin_memory()


@dataclass
class _EpochOrder:
    """A batch sampler whose batches are set before each epoch; an item is (epoch, index), so workers need no epoch."""

    epoch: int = 0
    batches: Sequence[NDArray[np.int64]] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.epoch, index) for index in chosen.tolist()] for chosen in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Transformed(Dataset[Any]):
    """Images of a store, read a batch at a time and transformed one by one; each process opens the store for itself."""

    def __init__(self, root: Path, transforms: Any, seed: int) -> None:
        self.root = root
        self.transforms = build_transforms(transforms)
        self.seed = seed
        self._store: Store | None = None

    def __getitems__(self, items: list[tuple[int, int]]) -> tuple[list[Tensor], NDArray[Any]]:
        """Return images and targets of a batch, whose samples are each an (epoch, index); DataLoader calls it."""
        if self._store is None:
            self._store = Store(self.root)
        indices = [index for _, index in items]
        planes = self._store.images[np.asarray(indices)].transpose(0, 3, 1, 2).copy()  # faster than torch's copy
        transformed = transform_batch(self.transforms, torch.from_numpy(planes), self.seed, items[0][0], indices)
        return transformed, self._store.labels[indices]


def _collated(samples: Any) -> ImageBatch:
    images, targets = samples  # of one call of __getitems__
    return default_collate(images), torch.from_numpy(targets)
