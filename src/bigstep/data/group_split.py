"""A split that keeps groups together: all images of a patient, or all frames of a film, are in one part."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bigstep.data.split import SPLITS, UNASSIGNED, Split, draw_order
from bigstep.errors import DataError

__all__ = ["split_groups"]


def split_groups(
    groups: Sequence[str],
    given: NDArray[np.int8],
    strata: NDArray[np.int64],
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> NDArray[np.uint8]:
    """Assign each sample to a part, each group as a whole; within each stratum, if no group has samples of several.

    Args:
        groups: of each sample; a sample of none, with an empty name, is a group by itself.
        given: part that the source itself fixes, -1 where it fixes none, shape ``(n,)``; a group follows those of its samples.
        strata: such as class indices, shape ``(n,)``.
        validation_fraction: share of the samples that are drawn from, test samples not counted.
        test_fraction: share of the samples that are drawn from.
        seed: of the draw.

    Raises:
        DataError: the source puts a group into two parts, or there are too few groups.
    """
    names, which = np.unique([name or f"\0{number}" for number, name in enumerate(groups)], return_inverse=True)
    sizes = np.bincount(which)
    fixed = _fixed(names, which, given)
    draws = [(split, part) for split, part in ((Split.TEST, test_fraction), (Split.VALIDATION, validation_fraction))]
    draws = [(split, part) for split, part in draws if not (fixed == split).any()]
    parts = np.where(fixed == UNASSIGNED, Split.TRAIN, fixed).astype(np.uint8)
    for number, stratum in enumerate(_strata(which, strata, len(names))):
        rest = draw_order(fixed, stratum, 1 + len(draws), np.random.default_rng([seed, number]))
        if len(rest) < 1 + len(draws):
            raise DataError(
                f"groups: expected at least {1 + len(draws)} of them to split (for each class, if none has several classes), "
                f"got {len(rest)}; add samples, or give their parts"
            )
        for place, (split, share) in enumerate(draws):
            chosen = _choose(sizes[rest].tolist(), share, spare=len(draws) - place)
            parts[rest[chosen]], rest = split, rest[~chosen]
    return parts[which]


def _fixed(names: NDArray[np.str_], which: NDArray[np.int64], given: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return the part that the source fixes for each group."""
    fixed = np.full(len(names), UNASSIGNED, np.int8)
    for split in Split:
        has = np.unique(which[given == split])
        twice = has[fixed[has] != UNASSIGNED]
        if len(twice):
            first = SPLITS[int(fixed[twice[0]])]
            raise DataError(
                f"group {str(names[twice[0]])!r}: expected samples in one part, got some in {first} and some in "
                f"{SPLITS[split]}; correct the parts"
            )
        fixed[has] = split
    return fixed


def _strata(which: NDArray[np.int64], strata: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """Return the groups of each stratum; all together if a group has samples of several."""
    pairs = np.unique(np.stack([which, strata]), axis=1)
    if pairs.shape[1] > count:
        return [np.arange(count)]
    return [pairs[0, pairs[1] == stratum] for stratum in np.unique(strata)]


def _choose(sizes: Sequence[int], share: float, spare: int) -> NDArray[np.bool_]:
    """Return which groups make a part, one or more: in their order, each that brings it nearer to its share of the samples.

    If all of them are too large, it is the smallest; ``spare`` groups are left.
    """
    target, total = share * sum(sizes), 0
    chosen: list[int] = []
    for number, size in enumerate(sizes):
        if total >= target or len(chosen) == len(sizes) - spare:
            break
        if abs(total + size - target) < abs(total - target):
            chosen.append(number)
            total += size
    found = np.zeros(len(sizes), bool)
    found[chosen or [int(np.argmin(sizes))]] = True
    return found
