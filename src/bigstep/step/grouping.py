"""Which samples the self-check takes, and the groups in which it runs them: the same samples twice, cut in two ways.

With micro-batches of eight and more all of them are in one pass, and then in parts of two and three. Of smaller
micro-batches there are several passes in either cut, which overlap at different places: a shuffle or a sum within a pass
shows unless it leaves nearly every sample as it is. The second cut has more passes, so that what moves once in each shows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

__all__ = ["MAX_SAMPLES", "Groups", "choose_groups"]

MAX_SAMPLES = 8
LARGEST_PART = 3  # samples of a group of the second cut


@dataclass(frozen=True)
class Groups:
    """Samples, and two ways to cut them into passes."""

    samples: tuple[int, ...]
    """Their numbers in the batch; one may be there twice."""
    together: tuple[slice, ...]
    """Passes as large as a micro-batch is, but two where it is one."""
    apart: tuple[slice, ...]
    """Smaller ones, more of them."""

    @classmethod
    def of(cls, samples: Sequence[int], size: int) -> "Groups":
        """Cut ``samples`` into passes of at most ``size``."""
        together = _sizes(len(samples), size)
        return cls(tuple(samples), _slices(together), _slices(_cut(len(samples), together)))


def choose_groups(places: Sequence[int], micro_batch_size: int) -> Groups:
    """Choose at most eight samples of ``places``, spread over them.

    One of them comes again in the same pass, which the other cut takes apart: what a layer remembers of it shows.
    """
    count = min(MAX_SAMPLES, len(places))
    size = min(max(micro_batch_size, 2), count)
    count -= size == 2 and count % 2  # none is left in a pass of its own
    chosen = [places[round(index * (len(places) - 1) / (count - 1))] for index in range(count)]
    groups = Groups.of(chosen, size)
    if count > 2:
        first, again = _pair(groups)
        chosen[again] = chosen[first]
    return Groups(tuple(chosen), groups.together, groups.apart)


def _sizes(count: int, size: int) -> tuple[int, ...]:
    whole, left = divmod(count, size)
    if left == 1:
        return (*(size,) * (whole - 1), size - 1, 2)
    return (size,) * whole + (left,) * bool(left)


def _cut(count: int, together: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes of the second cut; of more than two passes the last is cut into single samples."""
    if len(together) < 3:
        return _offset(count, together)
    *others, last = together
    return (*_offset(count - last, tuple(others)), *(1,) * last)


@cache
def _offset(count: int, together: tuple[int, ...]) -> tuple[int, ...]:
    """Return sizes of more passes, with few single samples, other numbers of odd ones (medians), and at other places."""
    edges, odd = set(accumulate(together[:-1])), sum(size % 2 for size in together)

    def faults(sizes: tuple[int, ...]) -> tuple[int, ...]:
        is_as_odd, shared = sum(size % 2 for size in sizes) == odd, len(edges.intersection(accumulate(sizes)))
        return sizes.count(1), is_as_odd, shared, len(sizes), *(-size for size in sizes)

    return min((sizes for sizes in _compositions(count) if len(sizes) > len(together)), key=faults)


def _compositions(count: int) -> Iterator[tuple[int, ...]]:
    if not count:
        yield ()
    for size in range(1, min(LARGEST_PART, count) + 1):
        for others in _compositions(count - size):
            yield (size, *others)


def _slices(sizes: tuple[int, ...]) -> tuple[slice, ...]:
    ends = list(accumulate(sizes))
    return tuple(slice(end - size, end) for end, size in zip(ends, sizes, strict=True))


def _pair(groups: Groups) -> tuple[int, int]:
    """Return two places of one pass that the other cut separates; of the second cut, where the first has pairs only.

    The later one comes second in its part where that is possible: what shifts samples by one would fetch the same sample.
    """
    has_pairs_only = all(group.stop - group.start == 2 for group in groups.together)
    passes, parts = (groups.apart, groups.together) if has_pairs_only else (groups.together, groups.apart)
    pairs = [
        (later == part.start, -group.start, first, later)
        for group in passes
        for part in parts
        for first in range(group.start, min(group.stop, part.start))
        for later in range(max(part.start, group.start), min(part.stop, group.stop))
    ]
    return min(pairs)[2:]
