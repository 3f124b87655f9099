"""The process's memory, as the system sees it."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD
_TRIM_THRESHOLD = -1  # M_TRIM_THRESHOLD; to set the other one fixes it at 128 kB
_KEPT_AT_THE_END = 1 << 26  # of the heap, between two calls
_LARGE_BLOCK = 1 << 24  # above that what the system takes to hand a block out, page by page, is little beside its use


def give_memory_back() -> None:
    """Have the C library return freed memory to the system, where it can be told to (glibc).

    Left to itself it keeps blocks of up to 32 MB for later, in every thread, so that layers that are long gone still
    take several times their size. Large blocks made after the first call go back as they are freed, all others with
    the next call: handing out what a layer makes anew for every batch would take a third of the time.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_AT_THE_END)
        library.malloc_trim(0)
