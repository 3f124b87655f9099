"""Files that are mapped into memory: when one becomes shorter, reading what is gone faults, and that is said.

The system answers such a read with SIGBUS, which ends the process without a word, and no check beforehand can be sure.
The command line has it answered here instead, with one message; a disk that fails under a mapped file is answered the
same way. As after any other sudden end nothing half done bears a final name.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_sizes: dict[Path, int] = {}  # of the files that were mapped, when they were
_installed: list[object] = []  # the system calls it for as long as the process lives


def remember(path: Path, size: int) -> None:
    """Take note of a file that is mapped, so that it can be named."""
    _sizes[path] = size


def answer_faults(end: Callable[[str, bool], None]) -> None:
    """Have `end` called when mapped bytes cannot be read; it must end the process at once.

    It is given a message, and True if a file changed, or False if the disk failed.
    """
    if not hasattr(signal, "SIGBUS") or _installed:
        return

    def answer(number: int) -> None:
        changed = _changed()
        if changed is not None:
            end(f"{changed}: became shorter while it was read; nothing was published, run again when it is whole", True)
        end("a file that is mapped into memory cannot be read: the disk failed; what was finished is kept", False)
        os._exit(128 + number)  # going back would fault again

    # Python's own handlers run later, when the faulting instruction is over, which it never is.
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(answer)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, type(callback)), ctypes.c_void_p
    libc.signal(signal.SIGBUS, callback)
    _installed.append(callback)


def _changed() -> Path | None:
    """Return the mapped file that has not the size any more that it had."""
    for path, size in list(_sizes.items()):
        with suppress(OSError):  # one that was removed, such as scratch, is whole for who has it mapped
            if path.stat().st_size != size:
                return path
    return None
