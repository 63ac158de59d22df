"""Images per second out of the data path: torchvision's transforms against a plain DataLoader, and the built-in augmentation.

Both loaders read the same store, run the same transforms, and have the same number of processes; they take turns, each with
an epoch of its own. The plain one leaves random numbers to the seeds of its processes.
"""

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bigstep.config.data import DataConfig
from bigstep.config.train import TrainConfig
from bigstep.data.decoding import Decoded, Layout
from bigstep.data.sample import Sample
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.data.store_writer import prepare_store
from bigstep.data.transforms import build_transforms
from bigstep.tasks.targets import ClassTargets
from bigstep.training.training_batches import TrainingBatches

COUNT, BATCH, ROUNDS, WARM = 4096, 64, 5, 4
SIZES = (32, 128)
PIPELINES = {
    "flip": [{"RandomHorizontalFlip": {"p": 0.5}}],
    "crop and flip": [{"RandomResizedCrop": {"size": 0, "antialias": True}}, {"RandomHorizontalFlip": {"p": 0.5}}],
    "TrivialAugmentWide": ["TrivialAugmentWide"],
}


class Plain(Dataset[tuple[Tensor, int]]):
    """The images of a store through transforms, as a tutorial has it."""

    def __init__(self, store: Store, transforms: Any) -> None:
        shape = (len(store.labels), *store.images.shape[1:])
        self.images = np.memmap(store.paths.images, dtype=np.uint8, mode="r", shape=shape)
        self.labels, self.ids, self.transforms = store.labels, store.indices(Split.TRAIN), transforms

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        index = self.ids[number]
        image = torch.from_numpy(self.images[index].transpose(2, 0, 1).copy())
        return self.transforms(image), int(self.labels[index])


def main() -> None:
    """Print a row of Markdown for each case."""
    torch.set_num_threads(1)
    print("| pixels | augmentation | processes | bigstep, images/s | DataLoader, images/s | ratio (range) |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            store = make_store(Path(folder), size)
            for name, items in PIPELINES.items():
                for workers in (1, 2):
                    print(compare(store, size, name, items, workers), flush=True)
            for name in ("none", "shift-flip"):
                batches = TrainingBatches(store, TrainConfig(augmentation=name), BATCH)
                rates = [rate(batches.epoch(epoch)) for epoch in range(ROUNDS)]
                print(f"| {size} | built-in {name} | 0 | {statistics.median(rates):,.0f} | | |", flush=True)


def make_store(folder: Path, size: int) -> Store:
    """Prepare a store of random pictures."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), dtype=np.uint8)

    class Made:
        targets = ClassTargets(tuple(map(str, range(10))))
        layout, files, num_ignored = Layout(size, 3, 1e6), (), 0

        def __len__(self) -> int:
            return COUNT

        def __iter__(self) -> Iterator[Sample]:
            return (Sample(str(index), index % 10, -1, Decoded(pixels[index % 64], "")) for index in range(COUNT))

    for _ in prepare_store(Made(), DataConfig(), folder):  # type: ignore[arg-type]
        pass
    return Store(folder)


def compare(store: Store, size: int, name: str, items: list[Any], workers: int) -> str:
    """Return the row of one case."""
    items = [
        {key: {**value, "size": size} if "size" in value else value for key, value in item.items()}
        if isinstance(item, dict)
        else item
        for item in items
    ]
    ours = TrainingBatches(store, TrainConfig(augmentation=tuple(items)), BATCH, workers)
    dataset = Plain(store, build_transforms(items))
    plain = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=True)
    rates = [(rate(ours.epoch(epoch)), rate(plain)) for epoch in range(ROUNDS + 1)][1:]  # the first starts the processes
    ratios = sorted(first / second for first, second in rates)
    first, second = (statistics.median(column) for column in zip(*rates, strict=True))
    text = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return f"| {size} | {name} | {workers} | {first:,.0f} | {second:,.0f} | {text} |"


def rate(epoch: Iterable[Any]) -> float:
    """Return images per second of an epoch, its first batches left out: they were prepared before the clock started."""
    started, count = 0.0, 0
    for number, (images, _) in enumerate(epoch):
        if number == WARM:
            started = time.perf_counter()
        elif number > WARM:
            count += len(images)
    return count / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
