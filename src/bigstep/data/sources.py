"""Where images come from: each source yields its samples one at a time, in an order that never changes."""

import gzip
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigstep.config.data import DataConfig
from bigstep.data.decoding import Decoded, Layout, Refusal, resize_array, with_channels
from bigstep.data.image_folder import Listing, list_folder
from bigstep.data.manifest import SourceFile
from bigstep.data.own_dataset import open_dataset
from bigstep.data.parallel_decoding import decode_files
from bigstep.data.sample import Sample, Source
from bigstep.data.sklearn_internals import digits_file, read_digits
from bigstep.data.split import UNASSIGNED, Split
from bigstep.data.table_source import open_table
from bigstep.errors import DataError
from bigstep.tasks.targets import ClassTargets
from bigstep.user_code import is_user_code

__all__ = ["open_source"]


def open_source(data: DataConfig, root: Path, num_workers: int) -> Source:
    """Open the source that ``data`` names.

    Args:
        data: the section ``data``.
        root: ``data.root``, resolved.
        num_workers: processes that decode files.

    Raises:
        DataError: the source is missing or invalid.
    """
    if data.source == "image-folder":
        assert data.image_size is not None  # the section checks it
        layout = Layout(data.image_size, data.channels or 3, data.max_megapixels * 1e6)
        return FolderSource(root, list_folder(root), layout, num_workers)
    if data.source == "table":
        return open_table(data, root, num_workers)
    if is_user_code(data.source):
        return open_dataset(data, root)
    loaders = {"digits": _digits, "fashion-mnist": _fashion_mnist, "cifar10": _cifar10}
    return loaders[data.source](data, root)


@dataclass(frozen=True)
class FolderSource:
    """A folder of class folders."""

    root: Path
    listing: Listing
    layout: Layout
    num_workers: int
    files: tuple[SourceFile, ...] = ()

    @property
    def targets(self) -> ClassTargets:
        """The class folders."""
        return ClassTargets(self.listing.classes)

    @property
    def num_ignored(self) -> int:
        """Files beside the class folders."""
        return self.listing.num_ignored

    def __len__(self) -> int:
        """Count the files."""
        return len(self.listing.entries)

    def __iter__(self) -> Iterator[Sample]:
        """Decode file after file."""
        paths = (self.root / entry.name for entry in self.listing.entries if entry.refusal is None)
        decoded = decode_files(paths, self.layout, self.num_workers)
        for entry in self.listing.entries:
            result = next(decoded) if entry.refusal is None else Refusal(entry.refusal)
            yield Sample(entry.name, entry.label, UNASSIGNED if entry.split is None else entry.split, result)


@dataclass(frozen=True)
class ArraySource:
    """Arrays that fit in memory: images ``(n, height, width, channels)`` uint8, labels ``(n,)``, given parts ``(n,)``."""

    targets: ClassTargets
    layout: Layout
    files: tuple[SourceFile, ...]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    given: NDArray[np.int8]
    num_ignored: int = 0

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def __iter__(self) -> Iterator[Sample]:
        """Resize image after image."""
        for index, image in enumerate(self.images):
            pixels = resize_array(with_channels(image, self.layout.channels), self.layout.size or image.shape[0])
            yield Sample(f"{index}", int(self.labels[index]), int(self.given[index]), Decoded(pixels, ""))


def _array_source(
    data: DataConfig,
    classes: tuple[str, ...],
    files: tuple[SourceFile, ...],
    *parts: tuple[NDArray[np.uint8], NDArray[np.int64], int],
) -> ArraySource:
    images = np.concatenate([images for images, _, _ in parts])
    labels = np.concatenate([labels for _, labels, _ in parts])
    given = np.concatenate([np.full(len(labels), part, np.int8) for _, labels, part in parts])
    layout = Layout(data.image_size or images.shape[1], data.channels or images.shape[3], data.max_megapixels * 1e6)
    return ArraySource(ClassTargets(classes), layout, files, images, labels, given)


def _digits(data: DataConfig, root: Path) -> Source:
    """scikit-learn's digits: 1,797 grey images of 8 x 8 pixels, values 0 to 16, embedded in the package."""
    del root
    path = digits_file()
    values, labels = read_digits(path)
    images = np.rint(values * (255 / 16)).astype(np.uint8)[..., None]
    classes = tuple(str(digit) for digit in range(10))
    return _array_source(data, classes, (SourceFile.hashed(path, path.parent),), (images, labels, -1))


IDX = tuple(f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))


def _fashion_mnist(data: DataConfig, root: Path) -> Source:
    """Fashion-MNIST as IDX files, compressed or not: in the root itself, or where torchvision puts them below it."""
    from torchvision.datasets import FashionMNIST

    paths = _find_idx(root)
    if paths is None and data.download:
        _loaded(lambda: FashionMNIST(str(root), download=True), root)
        paths = _find_idx(root)
    if paths is None:
        raise DataError(
            f"data.root: expected the Fashion-MNIST files ({IDX[0]}[.gz] etc.) in {root}, got none or not all; "
            "set data.download=true to download them, "
            "or data.root=/usr/share/datasets/fashion-mnist after `apt install dataset-fashion-mnist`"
        )
    train_images, train_labels, test_images, test_labels = (_read_idx(path) for path in paths)
    files = tuple(SourceFile.hashed(path, path.parent) for path in paths)
    return _array_source(
        data,
        tuple(FashionMNIST.classes),
        files,
        (train_images[..., None], train_labels.astype(np.int64), UNASSIGNED),
        (test_images[..., None], test_labels.astype(np.int64), Split.TEST),
    )


def _find_idx(root: Path) -> list[Path] | None:
    for folder in (root, root / "FashionMNIST" / "raw", root / "raw"):
        paths = [path for name in IDX for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if len({path.name.removesuffix(".gz") for path in paths}) == len(IDX):
            return list({path.name.removesuffix(".gz"): path for path in reversed(paths)}.values())[::-1]
    return None


def _read_idx(path: Path) -> NDArray[np.uint8]:
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    try:
        with tempfile.NamedTemporaryFile() as plain:
            content = path.read_bytes()
            plain.write(gzip.decompress(content) if path.suffix == ".gz" else content)
            plain.flush()
            array: NDArray[np.uint8] = read_sn3_pascalvincent_tensor(plain.name).numpy()
            return array
    except (OSError, EOFError, AssertionError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise DataError(
            f"{path}: expected an IDX file, got a damaged one ({type(error).__name__}); download it again"
        ) from None


def _cifar10(data: DataConfig, root: Path) -> Source:
    """CIFAR-10 as torchvision lays it out; its files are pickles, which torchvision opens after comparing their MD5."""
    from torchvision.datasets import CIFAR10

    train = _loaded(lambda: CIFAR10(str(root), train=True, download=data.download), root)
    test = _loaded(lambda: CIFAR10(str(root), train=False), root)
    folder = root / CIFAR10.base_folder
    names = [name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]]
    return _array_source(
        data,
        tuple(train.classes),
        tuple(SourceFile.hashed(folder / name, folder) for name in names),
        (train.data, np.asarray(train.targets, np.int64), UNASSIGNED),
        (test.data, np.asarray(test.targets, np.int64), Split.TEST),
    )


def _loaded(load: Callable[[], Any], root: Path) -> Any:
    try:
        return load()
    except (RuntimeError, OSError) as error:  # URLError is an OSError
        problem = str(error).splitlines()[0]
        raise DataError(
            f"data.root: expected the complete data set in {root}, torchvision reports: {problem} "
            "Set data.download=true to download it, or fix data.root"
        ) from None
