"""Items made ahead in a thread are the same items; an error comes where its item would have, and nothing runs on."""

import threading
from collections.abc import Iterator

import pytest

from bigstep.training.prefetch import prefetched


def test_items_come_in_order_and_one_is_made_ahead() -> None:
    asked, threads = threading.Semaphore(0), set()

    def items() -> Iterator[int]:
        for number in range(5):
            threads.add(threading.current_thread())
            asked.release()
            yield number

    found = prefetched(items(), lambda number: number * 10)
    assert next(found) == 0
    assert all(asked.acquire(timeout=10) for _ in range(2)), "the second is made while the caller has the first"
    assert not asked.acquire(blocking=False)
    assert list(found) == [10, 20, 30, 40]
    assert threading.current_thread() not in threads


def test_an_error_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("three")

    found = prefetched(items(), lambda number: number)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ValueError, match="three"):
        next(found)


def test_a_closed_iterator_leaves_no_thread() -> None:
    before = threading.active_count()
    found = prefetched(iter(range(100)), lambda number: number)
    assert next(found) == 0
    found.close()  # type: ignore[attr-defined] # a generator
    assert threading.active_count() == before
