"""Which part each sample of a source belongs to: by its groups if there are any, else within each class or at random."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bigstep.config.data import DataConfig
from bigstep.data.group_split import split_groups
from bigstep.data.split import check_classes, split_alike, split_samples
from bigstep.errors import DataError
from bigstep.tasks.targets import CLASSIFICATION, Targets

__all__ = ["Groups", "choose_parts"]


@final
class Groups:
    """The group of each sample, in order; nothing is kept as long as no sample has one."""

    def __init__(self) -> None:
        """Start without samples."""
        self._names: list[str] = []
        self._count = 0

    def add(self, name: str) -> None:
        """Add a sample; an empty name is no group."""
        if name and not self._names:
            self._names = [""] * self._count
        if name or self._names:
            self._names.append(name)
        self._count += 1

    @property
    def names(self) -> Sequence[str]:
        """One name for each sample, or nothing."""
        return self._names


def choose_parts(
    targets: Targets, labels: NDArray[Any], given: NDArray[np.int8], groups: Sequence[str], data: DataConfig
) -> NDArray[np.uint8]:
    """Assign each sample to a part.

    Args:
        targets: what the labels are.
        labels: of each sample.
        given: part that the source itself fixes, -1 where it fixes none, shape ``(n,)``.
        groups: name of each sample's group, empty for none; without any samples are split one by one.
        data: the section ``data``.

    Raises:
        DataError: a class or label has no samples, or there are too few to split.
    """
    draw: dict[str, Any] = {"validation_fraction": data.validation_fraction, "test_fraction": data.test_fraction}
    draw["seed"] = data.split_seed
    is_class = targets.task == CLASSIFICATION
    if is_class and not groups:
        return split_samples(labels, given, targets.names, **draw)
    for name, count in () if is_class else targets.counts(labels).items():
        if count == 0:
            raise DataError(f"label {name!r}: expected at least one sample, got none; add samples or remove the label")
    if not groups:
        return split_alike(given, **draw)
    parts = split_groups(groups, given, labels if is_class else np.zeros(len(given), np.int64), **draw)
    if is_class:
        check_classes(labels, parts.astype(np.int8), targets.names)
    return parts
