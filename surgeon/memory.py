"""The process's memory, as the system sees it: giving it back, and telling when there is none left."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from surgeon.errors import EnvironmentFailure, SurgeonError

_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD
_TRIM_THRESHOLD = -1  # M_TRIM_THRESHOLD; to set the other one fixes it at 128 kB
_KEPT_AT_THE_END = 1 << 26  # of the heap, between two calls
_LARGE_BLOCK = 1 << 24  # above that what the system takes to hand a block out, page by page, is little beside its use

# What torch, its extensions and what loads them say instead of raising `MemoryError`.
_SAID = (
    "not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc",
    "can't start new thread", "failed to map segment", "unable to mmap", "memory allocation of",
)  # fmt: skip
_FOR_TORCH = 700 << 20  # bytes of addresses that torch's libraries take
_FOR_FIGURES = 66 << 30, 1 << 30  # addresses, and of them such as could be written to, that drawing takes at its height
HELP = (
    "end other programs or raise the limit (`ulimit -v`, a container's), or ask for less at a time: a smaller "
    "`batch_size` or `sequence_length` of scores, a smaller `verify.batch_size` or `verify.window`, --jobs 1; `surgeon "
    "plan` says what a recipe needs. What was finished is kept"
)


def memory_error(error: BaseException) -> BaseException | None:
    """Return the error by which memory was found to be out, if it is that, or if another was made of it.

    That is `MemoryError`, or what libraries raise in its place.
    """
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, MemoryError) or (isinstance(one, OSError) and one.errno == errno.ENOMEM):
            return one
        if isinstance(one, (RuntimeError, ImportError, OSError)) and not isinstance(one, SurgeonError):
            said = str(one).lower()
            if any(words in said for words in _SAID):
                return one
        one = one.__cause__ or one.__context__
    return None


def require_room(what: str, addresses: int, data: int = 0) -> None:
    """Refuse to begin where a limit leaves so few bytes that a library in C++ or Rust would end the process.

    Such libraries abort, or trap, where they get no memory: no exception, no message, no handler that could be sure.

    Args:
        what: what is about to begin, for the message.
        addresses: how many bytes of addresses it takes; most may never be used.
        data: how many bytes of memory that is written to.

    Raises:
        EnvironmentFailure: there is less than that.
    """
    for kind, name, wanted in (("RLIMIT_AS", "VmSize", addresses), ("RLIMIT_DATA", "VmData", data)):
        left = _left(kind, name)
        if left is not None and left < wanted:
            takes = f"{what} takes {wanted >> 20:,} MB {'of addresses' if wanted == addresses else ''}".strip()
            flag = "-v" if kind == "RLIMIT_AS" else "-d"
            raise EnvironmentFailure(f"out of memory: {takes}, and `ulimit {flag}` leaves {left >> 20:,} MB; {HELP}")


def require_room_for_torch() -> None:
    """Refuse to load torch where there is no room for its libraries; see `require_room`."""
    if "torch" not in sys.modules:
        require_room("torch", _FOR_TORCH)


@cache
def require_room_for_figures() -> None:
    """Refuse to draw where there is no room for it; see `require_room`. Asked once: what it took then is kept."""
    require_room("drawing figures", *_FOR_FIGURES)


def _left(kind: str, name: str) -> int | None:
    """Return how many bytes a limit of the process leaves; None where it has none, or it cannot be told."""
    try:
        import resource

        limit = resource.getrlimit(getattr(resource, kind))[0]
        if limit == resource.RLIM_INFINITY:
            return None
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        taken = next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
        return max(limit - taken, 0)
    except (ImportError, AttributeError, OSError, StopIteration, ValueError):
        return None


def free_memory() -> int:
    """Return how many bytes this process may still take: of the machine, its container and its own limits, the least.

    Pages of files that the system would drop count as free. Where nothing can be told it is a gibibyte.
    """
    known = [_left("RLIMIT_AS", "VmSize"), _left("RLIMIT_DATA", "VmData"), _of_machine(), _of_container()]
    return min((left for left in known if left is not None), default=1 << 30)


def _of_machine() -> int | None:
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError, AttributeError):  # macOS tells no more than what there is, of which half is said
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return None


def _of_container() -> int | None:
    """Return what a control group leaves; pages of files that it holds go when memory is asked for."""
    for folder, limit, taken, files in (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError, StopIteration):
            most = int((folder / limit).read_text())  # "max" where there is none
            lines = (folder / "memory.stat").read_text().splitlines()
            dropped = next(int(line.split()[1]) for line in lines if line.startswith(f"{files} "))
            return max(most - int((folder / taken).read_text()) + dropped, 0)
    return None


def hand_back_large_blocks() -> None:
    """Have the C library (glibc) keep less freed memory for later: for a process that is surgeon's own, at its start.

    Left to itself it keeps blocks of up to 32 MB, in every thread, so that layers that are long gone still take several
    times their size. From now on large blocks go back as they are freed, all others with `give_memory_back`: handing
    out what a layer makes anew for every batch would take a third of the time.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_AT_THE_END)


def give_memory_back() -> None:
    """Have the C library return what is freed to the system now, where it can be told to; its settings stay."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
