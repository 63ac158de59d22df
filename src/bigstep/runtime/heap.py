"""The C library's heap in a process that computes on the CPU, if the library is glibc.

By default glibc hands large blocks back to the system as soon as they are free, and the top of its heap: the activations of
every micro-batch. Getting them again costs a page fault for each 4 KiB, a tenth to a third of a step (docs/speed.md).
"""

import contextlib
import ctypes

from bigstep.runtime.environment import HEAP_CHOICES, is_set

__all__ = ["keep_heap", "return_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of mallopt
LARGEST = 2**31 - 1  # bytes that mallopt takes
LARGEST_ONCE = 32 * 2**20  # of the second threshold, before glibc 2.35


def keep_heap() -> None:
    """Keep what is freed for the next allocation, in one heap for all threads; what the user has set by a variable stays.

    A heap for each thread would take 64 MiB of address space and give none back: under a limit nothing would be left to try
    again in. Where bigstep computes, one thread at a time allocates, so none waits.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_ARENA_MAX, 1)
        if not any(map(is_set, HEAP_CHOICES)):
            library.mallopt(M_TRIM_THRESHOLD, LARGEST)
            library.mallopt(M_MMAP_THRESHOLD, LARGEST) or library.mallopt(M_MMAP_THRESHOLD, LARGEST_ONCE)


def return_memory() -> None:
    """Return free memory to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
