"""The effective batches of an epoch, on the host: the same whatever the number of workers."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bigstep.config.train import TrainConfig
from bigstep.data.augmentation import augment
from bigstep.data.order import effective_batches, epoch_order
from bigstep.data.ordered_batches import ImageBatch, to_tensors
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.data.transforms import build_transforms, transform_sample
from bigstep.errors import ConfigError, DataError

__all__ = ["TrainingBatches"]


@final
class TrainingBatches:
    """The training images of a store, augmented, in effective batches of at most ``size`` samples.

    Sample order is a function of (seed, epoch), each sample's augmentation of (seed, epoch, sample). The built-in kinds are
    computed on whole batches in this process; a list of transforms runs image by image in ``num_workers`` processes.
    """

    def __init__(self, store: Store, train: TrainConfig, size: int, num_workers: int | None = None) -> None:
        """Prepare; ``num_workers`` None takes half the cores for a list of transforms, 0 none beside this process."""
        self.store = store
        self.train = train
        self.size = size
        self._ids = store.indices(Split.TRAIN)
        self._loader: DataLoader[Any] | None = None
        if not isinstance(train.augmentation, str):
            workers = max(1, (os.cpu_count() or 1) // 2) if num_workers is None else num_workers
            self._order = _EpochOrder()
            self._loader = DataLoader(
                _Transformed(store.paths.root, train.augmentation, train.seed),
                batch_sampler=self._order,
                num_workers=workers,
                persistent_workers=workers > 0,
                generator=torch.Generator(),  # its own: one drawn from torch's would move dropout without keys
            )

    def __len__(self) -> int:
        """Count the effective batches of an epoch."""
        return (len(self._ids) + self.size - 1) // self.size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ImageBatch]:
        """Yield the batches of an epoch, counted from 0, from the batch ``start`` on."""
        order = epoch_order(len(self._ids), self.train.seed, epoch)
        batches = list(effective_batches(self._ids[order], self.size))[start:]
        if self._loader is None:
            for chosen in batches:
                yield self._augmented(chosen, epoch)
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


@dataclass
class _EpochOrder:
    """A batch sampler whose batches are set before each epoch; an item is (epoch, index), so workers need no epoch."""

    epoch: int = 0
    batches: Sequence[NDArray[np.int64]] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.epoch, index) for index in chosen.tolist()] for chosen in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Transformed(Dataset[tuple[Tensor, Tensor]]):
    """Images of a store, transformed one at a time; each process opens the store for itself."""

    def __init__(self, root: Path, transforms: Any, seed: int) -> None:
        self.root = root
        self.transforms = build_transforms(transforms)
        self.seed = seed
        self._store: Store | None = None

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        if self._store is None:
            self._store = Store(self.root)
        epoch, index = item
        image = torch.from_numpy(self._store.images[index].transpose(2, 0, 1).copy())
        return transform_sample(self.transforms, image, self.seed, epoch, index), torch.tensor(self._store.labels[index])
