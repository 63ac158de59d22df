"""Stratified, seeded split: within each class, so that every part holds every class."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bigstep.errors import DataError

__all__ = ["SPLITS", "split_samples"]

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)


def split_samples(
    labels: NDArray[np.int64],
    given: NDArray[np.int8],
    classes: Sequence[str],
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> NDArray[np.uint8]:
    """Assign each sample to a part: an index into :data:`SPLITS`.

    Args:
        labels: class index of each sample, shape ``(n,)``.
        given: part that the source itself fixes, -1 where it fixes none, shape ``(n,)``. Parts that occur here are not
            drawn from the other samples.
        classes: names, for the messages.
        validation_fraction: share of the training images, test images not counted.
        test_fraction: share of all images.
        seed: of the draw.

    Raises:
        DataError: a class is empty, alone, missing from training, or too small to be in every part.
    """
    _check_classes(labels, given, classes)
    draw_test, draw_validation = not (given == TEST).any(), not (given == VALIDATION).any()
    parts = np.where(given == -1, TRAIN, given).astype(np.uint8)
    for label, name in enumerate(classes):
        mine = np.flatnonzero((labels == label) & (parts == TRAIN))
        needed = 1 + draw_test + draw_validation
        if len(mine) < needed:
            raise DataError(
                f"class {name!r}: expected at least {needed} training images to split, got {len(mine)}; "
                "add images or remove the class"
            )
        order = np.random.default_rng([seed, label]).permutation(mine)
        num_test = _share(len(mine), test_fraction, spare=needed - 1) if draw_test else 0
        num_validation = _share(len(mine) - num_test, validation_fraction, spare=1) if draw_validation else 0
        parts[order[:num_test]] = TEST
        parts[order[num_test : num_test + num_validation]] = VALIDATION
    return parts


def _share(count: int, fraction: float, spare: int) -> int:
    return min(max(1, round(count * fraction)), count - spare)


def _check_classes(labels: NDArray[np.int64], given: NDArray[np.int8], classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise DataError(f"classes: expected at least two, got only {classes[0]!r}; add another class folder")
    counts = np.bincount(labels, minlength=len(classes))
    trainable = np.bincount(labels[(given == -1) | (given == TRAIN)], minlength=len(classes))
    for label, name in enumerate(classes):
        if counts[label] == 0:
            raise DataError(f"class {name!r}: expected at least one readable image, got none; add images or remove the class")
        if trainable[label] == 0:
            where = " and ".join(part for index, part in enumerate(SPLITS) if (given[labels == label] == index).any())
            raise DataError(
                f"class {name!r}: expected training images, got images in the {where} set only; "
                "add training images or remove the class"
            )
