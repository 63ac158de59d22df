import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigstep.data.split import Split, split_samples
from bigstep.errors import DataError

FRACTIONS = {"validation_fraction": 0.15, "test_fraction": 0.2}


def _split(labels: list[int], given: list[int] | None = None, classes: str = "ab", seed: int = 0) -> np.ndarray:
    fixed = np.array(given if given is not None else [-1] * len(labels), np.int8)
    return split_samples(np.array(labels, np.int64), fixed, tuple(classes), seed=seed, **FRACTIONS)


@given(st.lists(st.integers(3, 60), min_size=2, max_size=5), st.integers(0, 3))
def test_every_part_holds_every_class_in_its_share(counts: list[int], seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    parts = _split(labels, classes="abcde"[: len(counts)], seed=seed)
    for label, count in enumerate(counts):
        found = np.bincount(parts[np.array(labels) == label], minlength=3)
        assert found.sum() == count
        assert found.min() >= 1
        assert abs(found[2] - 0.2 * count) <= 1
    assert (parts == _split(labels, classes="abcde"[: len(counts)], seed=seed)).all()


def test_another_seed_is_another_split() -> None:
    labels = [0] * 50 + [1] * 50
    assert (_split(labels, seed=0) != _split(labels, seed=1)).any()


def test_a_given_test_set_stays_the_test_set() -> None:
    test = Split.TEST
    parts = _split([0] * 20 + [1] * 20 + [0, 1], [-1] * 40 + [test, test])
    assert (parts == test).sum() == 2
    assert (parts[40:] == test).all()
    assert (parts == 1).sum() == 6


def test_a_given_validation_set_stays_too() -> None:
    parts = _split([0] * 10 + [1] * 10 + [0, 1, 0, 1], [0] * 20 + [1, 1, 2, 2])
    assert parts.tolist() == [0] * 20 + [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("labels", "given", "classes", "message"),
    [
        ([0] * 9, None, "a", "classes: expected at least two, got only 'a'"),
        ([0] * 9, None, "ab", "class 'b': expected at least one readable sample, got none"),
        ([0] * 9 + [1] * 2, None, "ab", "class 'b': expected at least 3 training samples to split, got 2"),
        ([0] * 9 + [1], [-1] * 9 + [2], "ab", "class 'b': expected training samples, got samples in the test set only"),
    ],
)
def test_classes_that_cannot_be_split_are_one_line(
    labels: list[int], given: list[int] | None, classes: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _split(labels, given, classes)


def test_samples_that_are_given_to_training_stay_there() -> None:
    given = [0] * 60 + [-1] * 40
    parts = _split([0, 1] * 50, given)
    assert (parts[:60] == Split.TRAIN).all()
    assert np.bincount(parts[60:], minlength=3).tolist() == [28, 4, 8]


@pytest.mark.parametrize("free", range(5))
def test_a_class_with_too_few_free_samples_gives_as_few_of_those_for_training(free: int) -> None:
    parts = _split([0] * 20 + [1] * 1000, [-1] * 20 + [-1] * free + [0] * (1000 - free))
    assert np.bincount(parts[:20], minlength=3).tolist() == [14, 2, 4]
    assert np.bincount(parts[20:], minlength=3).tolist() == [998, 1, 1]
    assert (parts[20 + max(free, 3) :] == Split.TRAIN).all() or free < 3


def test_a_training_and_a_test_set_give_validation_its_share() -> None:
    parts = _split([0, 1] * 50, [0] * 80 + [2] * 20)
    assert np.bincount(parts, minlength=3).tolist() == [68, 12, 20]
