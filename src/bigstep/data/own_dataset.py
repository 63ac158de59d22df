"""A data set that the project brings: images or arrays with their targets, from a function or class in ``custom/data/``."""

import hashlib
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigstep.config.data import DataConfig
from bigstep.data.arrays import read_array
from bigstep.data.decoding import Decoded, Layout, image_pixels, resize_array
from bigstep.data.manifest import SourceFile
from bigstep.data.sample import Sample, Source, is_missing
from bigstep.data.split import SPLITS, UNASSIGNED
from bigstep.errors import ConfigError, DataError
from bigstep.tasks.targets import CLASSIFICATION, MULTILABEL, REGRESSION, Targets, targets_of
from bigstep.user_code import call_user_code, load_user_code
from bigstep.user_places import place_of, user_code_line

__all__ = ["OwnSource", "open_dataset"]

ATTRIBUTES = {"classes": CLASSIFICATION, "labels": MULTILABEL, "targets": REGRESSION}  # of a data set, and the task
ARRAYS = "arrays"  # the attribute ``inputs`` of a data set whose samples are no images
LEAST = {"classes": 2}
MOST_SHOWN = 100  # characters of a value in a message
PARTS: dict[str | None, int] = {None: UNASSIGNED, **{name: number for number, name in enumerate(SPLITS)}}


@dataclass(frozen=True)
class OwnSource:
    """The samples of ``dataset``: ``(image, target)``, or with a part (train, validation, test or None), and a group."""

    name: str
    place: str
    dataset: Iterable[Any]
    targets: Targets
    layout: Layout
    files: tuple[SourceFile, ...] = ()
    num_ignored: int = 0
    like: NDArray[Any] | None = None
    """The first sample, where samples are no images."""

    def __len__(self) -> int:
        """Count the samples; 0 where the data set does not know."""
        return len(self.dataset) if isinstance(self.dataset, Sized) else 0

    def __iter__(self) -> Iterator[Sample]:
        """Return every sample once, in the data set's order.

        Raises:
            DataError: a sample is no image with a target, or reading it raised an exception.
        """
        for index, item in enumerate(_items(self.dataset, self.name)):
            with _named(self.name, self.place, index):
                image, target, part, group = _parts_of(item)
                pixels = self._numbers(image)
                label = self.targets.read(target)
            sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
            yield Sample(f"{index}", label, part, Decoded(pixels, sha256), group)

    def _numbers(self, sample: Any) -> NDArray[Any]:
        if self.layout.shape:
            return read_array(sample, self.like)
        assert self.layout.size is not None
        return resize_array(image_pixels(sample, self.layout.channels), self.layout.size)


def open_dataset(data: DataConfig, root: Path) -> Source:
    """Build the data set that ``data.source`` names, with what it asks for of root, image_size and channels.

    Raises:
        ConfigError: there is no such code, or its arguments do not fit ``data.options``.
        DataError: it is no data set of images with targets.
    """
    function = load_user_code(data.source, "data", "data.source")
    offered = {"root": root, "image_size": data.image_size, "channels": data.channels}
    dataset = call_user_code(function, data.source, "data.source", offered, data.options)
    place = place_of(function)
    targets = _targets(dataset, f"data.source {data.source} ({place})")
    items, first = _peek(dataset, data.source, place)
    with _named(data.source, place):
        is_array = getattr(dataset, "inputs", None) == ARRAYS or np.ndim(first) == 1
    if is_array:
        return _array_source(data, place, items, targets, first)
    with _named(data.source, place):
        pixels = image_pixels(first)
    layout = Layout(data.image_size or pixels.shape[0], data.channels or pixels.shape[2], data.max_megapixels * 1e6)
    return OwnSource(data.source, place, items, targets, layout)


def _array_source(data: DataConfig, place: str, items: Iterable[Any], targets: Targets, first: Any) -> OwnSource:
    for key, default in (("image_size", None), ("channels", None), ("pixel_statistics", "measured")):
        value, shown = getattr(data, key), "null" if default is None else default
        if value != default:
            raise ConfigError(f"data.{key}: expected {shown} with samples that are no images, got {value}; write {shown}")
    with _named(data.source, place):
        like = read_array(first)
    layout = Layout(None, 0, data.max_megapixels * 1e6, like.shape, like.dtype.name)
    return OwnSource(data.source, place, items, targets, layout, like=like)


@contextmanager
def _named(name: str, place: str, index: int = 0) -> Iterator[None]:
    """Name the data set and the sample that is wrong; a damaged file that Pillow has opened is only read here."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 # what Pillow, torch and NumPy raise for what they cannot read
        line = (str(error).splitlines() or [""])[0]
        problem = line if isinstance(error, ValueError) else f"{type(error).__name__}: {line}; correct the data set"
        problem = user_code_line(error) or problem
        raise DataError(f"data.source {name} ({place}), sample {index}: {problem}") from None


def _targets(dataset: Any, name: str) -> Targets:
    """Return what the attribute of the data set says: ``classes``, else ``labels``, else ``targets``."""
    found = next((attribute for attribute in ATTRIBUTES if getattr(dataset, attribute, None) is not None), "classes")
    names, least = getattr(dataset, found, None), LEAST.get(found, 1)
    if not isinstance(names, list | tuple) or not all(isinstance(item, str) for item in names) or len(names) < least:
        count = "at least two names" if least == 2 else "names"
        raise DataError(
            f"{name}: expected a data set with the attribute classes, a list of at least two names, labels (several of them a "
            f"sample) or targets (names of numbers), got {found} {_short(names)}; set self.{found} to a list of {count}"
        )
    if len(set(names)) < len(names) or not all(names):
        raise DataError(f"{name}: expected each of {found} once and with a name, got {list(names)}; rename one")
    return targets_of(ATTRIBUTES[found], names)


def _short(value: Any) -> str:
    """Return one line: a data set may hold a target for each sample under the name that is for names."""
    return textwrap.shorten(repr(value), MOST_SHOWN, placeholder=" ...")


def _peek(dataset: Any, name: str, place: str) -> tuple[Iterable[Any], Any]:
    """Read the first sample, which decides shape and type, or size and channels where params.yaml does not."""
    if _is_indexed(dataset):
        items: Iterable[Any] = dataset
        start = list(itertools.islice(_items(dataset, name), 1))
    elif isinstance(dataset, Iterable):
        rest = _items(dataset, name)
        start = list(itertools.islice(rest, 1))
        items = itertools.chain(start, rest)
    else:
        raise DataError(
            f"data.source {name} ({place}): expected a data set with __getitem__ and __len__, or with __iter__, got a "
            f"{type(dataset).__name__}; return one"
        )
    if not start:
        raise DataError(f"data.source {name} ({place}): expected samples, got an empty data set; add some")
    with _named(name, place):
        return items, _parts_of(start[0])[0]


def _is_indexed(dataset: Any) -> bool:
    """Return whether samples are read by their numbers; torch's IterableDataset inherits a method for it that only raises."""
    only_iterable = "IterableDataset" in [kind.__name__ for kind in type(dataset).__mro__]
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not only_iterable


def _parts_of(item: Any) -> tuple[Any, Any, int, str]:
    is_sample = isinstance(item, Sequence) and not isinstance(item, str) and len(item) in (2, 3, 4)
    part = item[2] if is_sample and len(item) > 2 else None
    group = item[3] if is_sample and len(item) > 3 and not is_missing(item[3]) else ""
    if not is_sample or not (part is None or isinstance(part, str)) or part not in PARTS:
        shown = f"the part {part!r}" if is_sample else f"a {type(item).__name__}"
        raise ValueError(
            f"a sample: expected (image, target), or (image, target, part[, group]) with a part {', '.join(SPLITS)} or None, "
            f"got {shown}"
        )
    return item[0], item[1], PARTS[part], str(group)


def _items(dataset: Any, name: str) -> Iterator[Any]:
    """Read sample after sample; an exception becomes one line with its place."""
    index = 0
    try:
        if _is_indexed(dataset) and not isinstance(dataset, Mapping):
            for index in range(len(dataset)):  # named in the message
                yield dataset[index]
        else:
            for index, item in enumerate(dataset):  # noqa: B007
                yield item
    except DataError:
        raise
    except Exception as error:
        line = user_code_line(error) or f"{type(error).__name__}: {error}"
        raise DataError(f"data.source {name}, sample {index}: {line}") from error
