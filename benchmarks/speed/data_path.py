"""Images per second out of the data path: torchvision's transforms against a plain DataLoader, and the built-in augmentation.

Both loaders read the same store, run the same transforms in one process beside this one, and take turns, each with an epoch of
its own. The plain one leaves random numbers to the seed of its process. Seconds are those of the processor, which say more than
the clock where others work beside.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bigstep.config.data import DataConfig
from bigstep.config.train import TrainConfig
from bigstep.data.decoding import Decoded, Layout
from bigstep.data.sample import Sample
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.data.store_writer import prepare_store
from bigstep.data.transforms import build_transforms
from bigstep.models.classifier import Classifier
from bigstep.tasks.targets import ClassTargets
from bigstep.training.training_batches import TrainingBatches

COUNT, BATCH, ROUNDS = 4096, 64, 3
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
    print("| pixels | augmentation | bigstep, images/s | DataLoader, images/s | ratio (range) |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for size in SIZES:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            print(normalised(size, memory_format), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            store = make_store(Path(folder), size)
            for name, items in PIPELINES.items():
                print(compare(store, size, name, items), flush=True)
            for name in ("none", "shift-flip"):
                batches = TrainingBatches(store, TrainConfig(augmentation=name), BATCH)
                started = time.process_time()
                count = sum(len(images) for epoch in range(10) for images, _ in batches.epoch(epoch))
                print(f"| {size} | built-in {name} | {count / (time.process_time() - started):,.0f} | | |", flush=True)


def normalised(size: int, memory_format: torch.memory_format) -> str:
    """Return the row of what the model does first with 16 stored images: against the same formula without a layout in mind."""
    images = torch.randint(0, 256, (16, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    options = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "network_channels": 3, "memory_format": memory_format}
    ours = Classifier(nn.Identity(), **options)

    def formula(images: Tensor) -> Tensor:
        return ((images.float() / 255 - ours.mean) / ours.std).contiguous(memory_format=memory_format)

    def seconds(function: Callable[[Tensor], Tensor]) -> float:
        started = time.process_time()
        for _ in range(50):
            function(images)
        return (time.process_time() - started) / 50

    assert torch.equal(ours(images), formula(images))
    rounds = [(seconds(ours), seconds(formula)) for _ in range(5)]
    ratios = sorted(second / first for first, second in rounds)
    first, second = (16 / statistics.median(column) for column in zip(*rounds, strict=True))
    text = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return f"| {size} | normalised, {str(memory_format).removeprefix('torch.')} | {first:,.0f} | {second:,.0f} | {text} |"


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


def compare(store: Store, size: int, name: str, items: list[Any]) -> str:
    """Return the row of one case."""
    items = [
        {key: {**value, "size": size} if "size" in value else value for key, value in item.items()}
        if isinstance(item, dict)
        else item
        for item in items
    ]
    ours = TrainingBatches(store, TrainConfig(augmentation=tuple(items)), BATCH, 1)
    dataset = Plain(store, build_transforms(items))
    plain = DataLoader(dataset, BATCH, shuffle=True, num_workers=1, persistent_workers=True)
    rates = [(rate(ours.epoch(epoch)), rate(plain)) for epoch in range(ROUNDS + 1)][1:]  # the first starts the processes
    ratios = sorted(first / second for first, second in rates)
    first, second = (statistics.median(column) for column in zip(*rates, strict=True))
    text = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return f"| {size} | {name} | {first:,.0f} | {second:,.0f} | {text} |"


def rate(epoch: Iterable[Any]) -> float:
    """Return images of an epoch per second of the processor, of this process and the loader's."""
    batches = iter(epoch)
    count = len(next(batches)[0])  # the processes are there now
    started = processor_seconds()
    for images, _ in batches:
        count += len(images)
    return count / (processor_seconds() - started)


def processor_seconds() -> float:
    """Return what this process and its children have used."""
    processes = [psutil.Process(), *psutil.Process().children()]
    return sum(process.cpu_times().user + process.cpu_times().system for process in processes)


if __name__ == "__main__":
    main()
