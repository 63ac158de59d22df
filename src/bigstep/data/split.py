"""Stratified, seeded split: within each class, so that every part holds every class."""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from bigstep.errors import DataError

__all__ = ["SPLITS", "UNASSIGNED", "Split", "check_classes", "draw_order", "split_alike", "split_samples"]


class Split(IntEnum):
    """A part of the samples, by its number in a store."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


SPLITS = tuple(split.name.lower() for split in Split)
UNASSIGNED = -1  # by the source


def split_samples(
    labels: NDArray[np.int64],
    given: NDArray[np.int8],
    classes: Sequence[str],
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> NDArray[np.uint8]:
    """Assign each sample to a part: a :class:`Split`.

    Args:
        labels: class index of each sample, shape ``(n,)``.
        given: part that the source itself fixes, -1 where it fixes none, shape ``(n,)``. Validation or test samples that occur
            here are not drawn from the others. Those given to training stay there, unless all have a part, or a class has too
            few without one.
        classes: names, for the messages.
        validation_fraction: share of the samples that are drawn from, test samples not counted.
        test_fraction: share of the samples that are drawn from.
        seed: of the draw.

    Raises:
        DataError: a class is empty, alone, missing from training, or too small to be in every part.
    """
    check_classes(labels, given, classes)
    whats = [f"class {name!r}" for name in classes]
    return _draw(labels, given, whats, validation_fraction, test_fraction, seed)


def split_alike(given: NDArray[np.int8], *, validation_fraction: float, test_fraction: float, seed: int) -> NDArray[np.uint8]:
    """Assign each sample to a part, as :func:`split_samples` but without classes.

    Raises:
        DataError: there are too few samples for every part.
    """
    return _draw(np.zeros(len(given), np.int64), given, ["the data"], validation_fraction, test_fraction, seed)


def _draw(
    strata: NDArray[np.int64],
    given: NDArray[np.int8],
    whats: Sequence[str],
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> NDArray[np.uint8]:
    """Draw the parts that ``given`` leaves open within each stratum; ``whats`` names them in messages."""
    draw_test, draw_validation = not (given == Split.TEST).any(), not (given == Split.VALIDATION).any()
    parts = np.where(given == UNASSIGNED, Split.TRAIN, given).astype(np.uint8)
    for label, what in enumerate(whats):
        needed = 1 + draw_test + draw_validation
        order = draw_order(given, np.flatnonzero(strata == label), needed, np.random.default_rng([seed, label]))
        if len(order) < needed:
            raise DataError(
                f"{what}: expected at least {needed} training samples to split, got {len(order)}; "
                f"add samples{' or remove the class' if len(whats) > 1 else ''}"
            )
        num_test = _share(len(order), test_fraction, spare=needed - 1) if draw_test else 0
        num_validation = _share(len(order) - num_test, validation_fraction, spare=1) if draw_validation else 0
        parts[order[:num_test]] = Split.TEST
        parts[order[num_test : num_test + num_validation]] = Split.VALIDATION
    return parts


def draw_order(given: NDArray[np.int8], among: NDArray[np.int64], needed: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return those ``among`` the samples, or groups, that parts are drawn from, in random order.

    They are those without a part or, if the source gives all of them one, those for training. Where these are fewer than
    ``needed``, as many for training as are missing follow.
    """
    free, trained = (among[given[among] == part] for part in (UNASSIGNED, Split.TRAIN))
    if not (given == UNASSIGNED).any():
        free, trained = trained, trained[:0]
    order = rng.permutation(free)
    return order if len(order) >= needed else np.concatenate([order, rng.permutation(trained)[: needed - len(order)]])


def _share(count: int, fraction: float, spare: int) -> int:
    return min(max(1, round(count * fraction)), count - spare)


def check_classes(labels: NDArray[np.int64], given: NDArray[np.int8], classes: Sequence[str]) -> None:
    """Refuse a class without samples, or without any that may be trained on.

    Raises:
        DataError: one line that names it.
    """
    if len(classes) < 2:
        raise DataError(f"classes: expected at least two, got only {classes[0]!r}; add samples of another class")
    counts = np.bincount(labels, minlength=len(classes))
    trainable = np.bincount(labels[(given == UNASSIGNED) | (given == Split.TRAIN)], minlength=len(classes))
    for label, name in enumerate(classes):
        if counts[label] == 0:
            raise DataError(f"class {name!r}: expected at least one readable sample, got none; add samples or remove the class")
        if trainable[label] == 0:
            where = " and ".join(part for index, part in enumerate(SPLITS) if (given[labels == label] == index).any())
            raise DataError(
                f"class {name!r}: expected training samples, got samples in the {where} set only; "
                "add training samples or remove the class"
            )
