"""Decode many files in parallel, in order, with a bounded number in flight; a file that kills the decoder is refused."""

import itertools
import multiprocessing
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from bigstep.data.decoding import Decoded, Layout, Refusal, decode_file

__all__ = ["decode_files"]

CHUNK = 32  # files of one message to a worker
AHEAD = 4  # messages under way per worker: bounds the memory

Result = Decoded | Refusal


def decode_files(paths: Iterable[Path], layout: Layout, num_workers: int) -> Iterator[Result]:
    """Yield one result for each path, in their order; ``num_workers`` 0 decodes in this process."""
    if num_workers == 0:
        yield from (decode_file(path, layout) for path in paths)
        return
    files = iter(paths)
    chunks = iter(lambda: list(itertools.islice(files, CHUNK)), [])
    pool = _pool(num_workers)
    under_way: deque[tuple[Sequence[Path], Future[list[Result]]]] = deque()
    try:
        for chunk in chunks:
            under_way.append((chunk, _submit(pool, chunk, layout)))
            if len(under_way) >= AHEAD * num_workers:
                pool = yield from _finish_first(under_way, pool, layout, num_workers)
        while under_way:
            pool = yield from _finish_first(under_way, pool, layout, num_workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _finish_first(
    under_way: deque[tuple[Sequence[Path], Future[list[Result]]]],
    pool: ProcessPoolExecutor,
    layout: Layout,
    num_workers: int,
) -> Generator[Result, None, ProcessPoolExecutor]:
    chunk, future = under_way.popleft()
    try:
        yield from future.result()
    except BrokenProcessPool:
        pool.shutdown()
        yield from (_decode_alone(path, layout) for path in chunk)
        pool = _pool(num_workers)
        again = [(waiting, _submit(pool, waiting, layout)) for waiting, _ in under_way]
        under_way.clear()
        under_way.extend(again)
    return pool


def _submit(pool: ProcessPoolExecutor, chunk: Sequence[Path], layout: Layout) -> "Future[list[Result]]":
    try:
        return pool.submit(_decode_chunk, chunk, layout)
    except BrokenProcessPool as error:
        broken: Future[list[Result]] = Future()
        broken.set_exception(error)
        return broken


def _decode_alone(path: Path, layout: Layout) -> Result:
    with _pool(1) as pool:
        try:
            return pool.submit(decode_file, path, layout).result()
        except BrokenProcessPool:
            return Refusal("crashes the decoder")


def _decode_chunk(paths: Sequence[Path], layout: Layout) -> list[Result]:
    return [decode_file(path, layout) for path in paths]


def _pool(num_workers: int) -> ProcessPoolExecutor:
    # spawn, because forking a process that has started torch's threads can hang
    return ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"))
