import pytest
from hypothesis import given

from bigstep.step.slicing import balanced_sizes, slices
from strategies import sizes


@given(sizes, sizes)
def test_sizes_add_up_differ_by_one_at_most_and_are_as_few_as_fit(total: int, largest: int) -> None:
    parts = balanced_sizes(total, largest)
    assert sum(parts) == total
    assert max(parts) <= largest
    assert max(parts) - min(parts) <= 1
    assert len(parts) == -(-total // largest)
    assert list(parts) == sorted(parts, reverse=True)


@given(sizes, sizes)
def test_slices_cover_each_sample_once(total: int, largest: int) -> None:
    covered = [index for part in slices(balanced_sizes(total, largest)) for index in range(total)[part]]
    assert covered == list(range(total))


def test_a_hundred_at_most_thirty_two_is_four_of_twenty_five() -> None:
    assert balanced_sizes(100, 32) == (25, 25, 25, 25)


@pytest.mark.parametrize(("total", "largest"), [(1, 0), (-1, 2)])
def test_impossible_sizes_are_refused_with_their_values(total: int, largest: int) -> None:
    with pytest.raises(ValueError, match=f"micro_batch_size={largest}, num_samples={total}"):
        balanced_sizes(total, largest)
