"""Make the next item of an iterator in a thread, while the caller works with this one."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetched"]

T = TypeVar("T")


def prefetched(items: Iterator[T], prepare: Callable[[T], T]) -> Iterator[T]:
    """Yield ``prepare(item)`` of each item, one item ahead; an exception comes where its item would have."""

    def make() -> T | None:
        item = next(items, None)
        return None if item is None else prepare(item)

    with ThreadPoolExecutor(1, thread_name_prefix="bigstep-prefetch") as pool:
        coming = pool.submit(make)
        while (item := coming.result()) is not None:
            coming = pool.submit(make)
            yield item
