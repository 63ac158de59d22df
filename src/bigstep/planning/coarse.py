"""Which micro-batch sizes and memory formats ``auto`` measures, in what order, and when it stops."""

import math
import time
from collections.abc import Callable, Iterator, Sequence

from bigstep.planning.throughput import SizeMeasurement

__all__ = ["LONGEST_SECONDS", "SHARE", "coarse_sizes", "measure_coarsely"]

SHARE = 0.05  # of the estimated training time that measuring may take
LONGEST_SECONDS = 30.0
AGAIN = 2  # rounds over the promising pairs, as far as the time allows
PROMISING = 0.6  # of the fastest
SMALLEST = 16  # smaller micro-batches are seldom faster, and measured only where the largest is small itself

Measure = Callable[[str, int], SizeMeasurement]


def coarse_sizes(largest: int) -> tuple[int, ...]:
    """Return the sizes to measure: the largest, a quarter of it or 16, and the power of two between them."""
    least = max(1, min(SMALLEST, largest // 4))
    middle = 2 ** round(math.log2(math.sqrt(least * largest)))
    return tuple(sorted({least, min(max(middle, least), largest), largest}))


def measure_coarsely(
    sizes: Sequence[int],
    formats: Sequence[str],
    num_samples: int,
    measure: Measure,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[tuple[str, SizeMeasurement]]:
    """Measure the most promising pairs of format and size first, until the share of the training time is used up.

    The smallest size in the first format is always measured: it is cheap, and gives the training time. The share is counted
    from there on, since it also pays for what the first step of a process loads. A pair may come again.

    Args:
        sizes: ascending.
        formats: the default first.
        num_samples: of all epochs.
        measure: of one pair.
        clock: seconds.
    """
    first = measure(formats[0], sizes[0])
    yield formats[0], first
    started, done = clock(), {(formats[0], sizes[0]): first}
    limit = min(LONGEST_SECONDS, SHARE * num_samples / first.samples_per_second)

    def affordable(size: int) -> bool:
        fastest = max(rung.samples_per_second for rung in done.values())
        return clock() - started + 2 * size / fastest <= limit

    largest = [(name, sizes[-1]) for name in reversed(formats)]
    for pair in largest:
        if pair not in done and affordable(pair[1]):
            done[pair] = measure(*pair)
            yield pair[0], done[pair]
    ranked = sorted(
        formats, key=lambda name: -max((r.samples_per_second for (f, _), r in done.items() if f == name), default=0)
    )
    for size in reversed(sizes[:-1]):
        for name in ranked:
            if (name, size) not in done and affordable(size):
                done[name, size] = measure(name, size)
                yield name, done[name, size]
    yield from _again(done, measure, affordable)


def _again(
    done: dict[tuple[str, int], SizeMeasurement], measure: Measure, affordable: Callable[[int], bool]
) -> Iterator[tuple[str, SizeMeasurement]]:
    """Measure pairs that may be the fastest again: a busy machine slows one and spares another, and the best time counts."""
    for _ in range(AGAIN):
        fastest = max(rung.samples_per_second for rung in done.values())
        for name, size in [pair for pair, rung in done.items() if rung.samples_per_second >= PROMISING * fastest]:
            if affordable(size):
                rung = measure(name, size)
                done[name, size] = max(rung, done[name, size], key=lambda item: item.samples_per_second)
                yield name, rung
