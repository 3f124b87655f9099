"""The process's memory, as the system sees it."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_memory_back() -> None:
    """Have the C library return freed memory to the system, where it can be told to (glibc).

    Left to itself it keeps blocks of up to 32 MB for later, in every thread, so that layers that are long gone still
    take several times their size. Between two calls it is left to itself: blocks that came fresh from the system each
    time, to be zeroed page by page, cost a third of a run's time.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
