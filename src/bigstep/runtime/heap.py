"""The C library's heap in a process that computes on the CPU, if the library is glibc.

By default glibc hands large blocks back to the system as soon as they are free, and the top of its heap: the activations of
every micro-batch. Getting them again costs a page fault for each 4 KiB, and up to a third of a step (decision 24).
"""

import contextlib
import ctypes

from bigstep.runtime.environment import HEAP_CHOICES, is_set

__all__ = ["free_heap_bytes", "keep_heap", "return_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of mallopt
NEVER = -1  # bytes of the heap's free top from which on it is given back
LARGEST = 2**31 - 1  # bytes from which on a block is mapped by itself, and given back when it is free: all that mallopt takes
LARGEST_ONCE = 32 * 2**20  # the same before glibc 2.35


class _Usage(ctypes.Structure):
    """What ``mallinfo2`` returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    )  # fmt: skip


def keep_heap() -> None:
    """Keep what is freed for the next allocation, in one heap for all threads; thresholds that the user has set stay.

    A heap for each thread would take 64 MiB of address space and give none back: under a limit nothing would be left to try
    again in. Where bigstep computes, one thread at a time allocates, so none waits.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_ARENA_MAX, 1)
        if not any(map(is_set, HEAP_CHOICES)):
            library.mallopt(M_TRIM_THRESHOLD, NEVER)
            library.mallopt(M_MMAP_THRESHOLD, LARGEST) or library.mallopt(M_MMAP_THRESHOLD, LARGEST_ONCE)


def free_heap_bytes() -> int:
    """Return the bytes that this process holds, and that its next allocations may take; 0 where the library does not say."""
    with contextlib.suppress(OSError, AttributeError):
        ask = ctypes.CDLL(None).mallinfo2
        ask.restype = _Usage
        return int(ask().fordblks)
    return 0


def return_memory() -> None:
    """Return free memory to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
