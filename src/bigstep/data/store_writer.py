"""A source into a store: one pass, sample by sample, so that memory does not grow with the source."""

import contextlib
import csv
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigstep.atomic_files import csv_writer, sha256
from bigstep.config.data import DataConfig
from bigstep.data.arrays import measure_arrays
from bigstep.data.decoding import Refusal
from bigstep.data.manifest import CHECKED_AT_START, Manifest, SourceFile
from bigstep.data.mapped_array import BLOCK_BYTES, MappedArray, digest_blocks
from bigstep.data.part_choice import Groups, choose_parts
from bigstep.data.repeated import HEADER_REPEATED, PixelDigests
from bigstep.data.sample import Sample, Source
from bigstep.data.split import SPLITS, Split
from bigstep.data.store import StorePaths, digest_parts
from bigstep.errors import DataError
from bigstep.tasks.target_kinds import BETWEEN
from bigstep.tasks.targets import CLASSIFICATION, MULTILABEL, Targets

__all__ = ["prepare_store"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = (0.299, 0.587, 0.114)
RESIDENT_BYTES = 2**21  # mapped pages of the images, which are read from the first to the last
HEADER_SAMPLES = ("index", "part", "class", "name", "sha256")
HEADER_SKIPPED = ("name", "class", "reason", "sha256")


def prepare_store(source: Source, data: DataConfig, folder: Path) -> Iterator[Sample]:
    """Write ``source`` into ``folder``, yielding each sample once it is written; the store is whole at the end.

    Raises:
        DataError: a file does not decode and ``data.on_bad_image`` is fail, the classes cannot be split, or a
            label has a name that tables of predictions cannot hold.
    """
    paths = StorePaths(folder)
    targets = source.targets
    _check_names(targets)
    labels, given, groups = targets.buffer(), array("b"), Groups()
    reasons: Counter[str] = Counter()
    digests = PixelDigests()
    taken_path = folder / "taken.tmp"  # names and hashes wait on disk until the split is known
    with (
        paths.images.open("wb") as pixels,
        _table(taken_path) as taken,
        _table(paths.skipped, HEADER_SKIPPED) as skipped,
    ):
        for sample in source:
            if isinstance(sample.result, Refusal):
                _check_allowed(sample.name, sample.result, data)
                skipped.writerow([sample.name, targets.describe(sample.label), sample.result.reason, sample.result.sha256])
                reasons[sample.result.reason] += 1
            else:
                pixels.write(sample.result.pixels.tobytes())
                taken.writerow([sample.name, sample.result.sha256])
                digests.add(sample.result.pixels)
                labels.extend(targets.flat(sample.label))
                given.append(sample.given)
                groups.add(sample.group)
            yield sample
    all_labels, all_given = targets.stack(labels), np.asarray(given, np.int8)
    parts = choose_parts(targets, all_labels, all_given, groups.names, data)
    np.save(paths.labels, all_labels)
    np.save(paths.parts, parts)
    _write_samples(paths, taken_path, parts, all_labels, targets, digests.groups(parts))
    paths.blocks.write_bytes(digest_blocks(paths.images))
    paths.manifest.write_text(_manifest(paths, source, data, all_labels, parts, reasons).to_json(), encoding="utf-8")


def _check_names(targets: Targets) -> None:
    wrong = [name for name in targets.names if targets.task == MULTILABEL and BETWEEN in name]
    if wrong:
        raise DataError(
            f"labels: expected names without {BETWEEN!r}, which separates the labels of a sample in tables, got "
            f"{wrong[0]!r}; rename it"
        )


def _write_samples(
    paths: StorePaths,
    taken_path: Path,
    parts: NDArray[np.uint8],
    labels: NDArray[Any],
    targets: Targets,
    groups: NDArray[np.int32],
) -> None:
    """Write the tables of samples, now that their parts are known; ``groups`` are of images in more than one part, or 0."""
    with (
        taken_path.open(newline="", encoding="utf-8") as file,
        _table(paths.samples, HEADER_SAMPLES) as samples,
        _table(paths.repeated, HEADER_REPEATED) as repeated,
    ):
        for index, (name, digest) in enumerate(csv.reader(file)):
            row = [index, SPLITS[parts[index]], targets.describe(labels[index]), name]
            samples.writerow([*row, digest])
            if groups[index]:
                repeated.writerow([groups[index], *row])
    taken_path.unlink()
    if not groups.any():
        paths.repeated.unlink()


def _check_allowed(name: str, refusal: Refusal, data: DataConfig) -> None:
    if data.on_bad_image == "fail":
        raise DataError(
            f"data.on_bad_image fail: expected every image to decode, got {name!r}: {refusal.reason}; remove the "
            "file, or set data.on_bad_image to skip"
        )


@contextlib.contextmanager
def _table(path: Path, header: tuple[str, ...] = ()) -> Iterator[Any]:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv_writer(file)
        if header:
            writer.writerow(header)
        yield writer


def _manifest(
    paths: StorePaths,
    source: Source,
    data: DataConfig,
    labels: NDArray[Any],
    parts: NDArray[np.uint8],
    reasons: Counter[str],
) -> Manifest:
    layout = source.layout
    size, channels = (0, 0) if layout.shape else (layout.size or 0, layout.channels)
    shape = (len(labels), *(layout.shape or (size, size, channels)))
    images = MappedArray(paths.images, shape, None, dtype=layout.dtype, resident_bytes=RESIDENT_BYTES)
    trained_on = np.flatnonzero(parts == Split.TRAIN)
    if layout.shape:
        mean, std = measure_arrays(images, trained_on)
    else:
        mean, std = _measure(images, trained_on) if data.pixel_statistics == "measured" else _imagenet(channels)
    targets = source.targets
    target_mean, target_std = targets.statistics(labels[parts == Split.TRAIN])
    tables = [path.name for path in (paths.samples, paths.skipped, paths.repeated) if path.exists()]
    files = source.files or (SourceFile.hashed(paths.samples, paths.root),)
    return Manifest(
        source=data.source,
        classes=targets.names,
        size=size,
        channels=channels,
        num_samples=len(labels),
        counts={name: targets.counts(labels[parts == part]) for part, name in enumerate(SPLITS)},
        mean=mean,
        std=std,
        normalization=data.pixel_statistics,
        files=files,
        refused=dict(sorted(reasons.items())),
        num_refused=reasons.total(),
        num_ignored=source.num_ignored,
        digests=digest_parts(images, labels, parts),
        block_bytes=BLOCK_BYTES,
        checksums={name: sha256(paths.root / name) for name in (*sorted(CHECKED_AT_START), *tables)},
        task=targets.task,
        sizes={}
        if targets.task == CLASSIFICATION
        else dict(zip(SPLITS, np.bincount(parts, minlength=3).tolist(), strict=True)),
        target_mean=target_mean,
        target_std=target_std,
        sample_shape=layout.shape,
        sample_dtype=layout.dtype,
    )


def _measure(images: MappedArray, indices: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, from a histogram of whole numbers, so that no rounding depends on the order."""
    channels = images.shape[3]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(indices), 1024):
        block = images[indices[start : start + 1024]]
        for channel in range(channels):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ values / total
    std = np.sqrt(np.maximum(counts @ values**2 / total - mean**2, 0))
    if (np.count_nonzero(counts, axis=1) == 1).all():
        raise DataError(
            f"data.source: expected images that differ, got {counts[0].argmax()} of 255 in all pixels of the training images; "
            "check what they are made from (of 16 bits a pixel the upper eight are kept)"
        )
    return tuple(mean.round(9).tolist()), tuple(np.where(std > 0, std, 1.0).round(9).tolist())


def _imagenet(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = (round(float(np.dot(GREY, values)), 9) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (mean,), (std,)
