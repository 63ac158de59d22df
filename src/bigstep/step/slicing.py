"""Integer arithmetic only: an effective batch into balanced micro-batches.

B samples in an effective batch, m the most a micro-batch holds, A = ceil(B / m) micro-batches.
"""

__all__ = ["balanced_sizes", "share_sizes", "slices"]


def balanced_sizes(num_samples: int, micro_batch_size: int) -> tuple[int, ...]:
    """Cut ``num_samples`` into as few micro-batches as fit, equal to within one sample, larger ones first.

    >>> balanced_sizes(100, 32)
    (25, 25, 25, 25)
    >>> balanced_sizes(10, 4)
    (4, 3, 3)

    Raises:
        ValueError: ``micro_batch_size`` is below 1, or ``num_samples`` below 0.
    """
    if micro_batch_size < 1 or num_samples < 0:
        raise ValueError(
            f"sizes: expected micro_batch_size >= 1 and num_samples >= 0, got {micro_batch_size=}, {num_samples=}; correct them"
        )
    count = -(-num_samples // micro_batch_size)
    small, larger = divmod(num_samples, count or 1)
    return (small + 1,) * larger + (small,) * (count - larger)


def share_sizes(num_samples: int, num_processes: int, unit: int = 1) -> tuple[int, ...]:
    """Share ``num_samples`` out among processes, in whole micro-batches of at most ``unit`` samples, larger shares first.

    Cut by :func:`balanced_sizes`, the shares give the micro-batches that the whole gives. A share may be empty.

    >>> share_sizes(100, 3)
    (34, 33, 33)
    >>> share_sizes(100, 3, 30)
    (50, 25, 25)
    """
    pieces = balanced_sizes(num_samples, unit)
    few, more = divmod(len(pieces), num_processes)
    counts = (few + 1,) * more + (few,) * (num_processes - more)
    return tuple(sum(pieces[part]) for part in slices(counts))


def slices(sizes: tuple[int, ...]) -> tuple[slice, ...]:
    """Turn sizes into consecutive slices.

    >>> slices((2, 1))
    (slice(0, 2, None), slice(2, 3, None))
    """
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return tuple(slice(end - size, end) for end, size in zip(ends, sizes, strict=True))
