"""How a command ends: one message and an exit code, whatever happened.

0 done; 1 done, but an expectation failed; 2 something given cannot be used; 3 disk, network or memory gave out; 130 and
143 interrupted by SIGINT and SIGTERM.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from surgeon.errors import EnvironmentFailure, InputError, SurgeonError
from surgeon.mapped import answer_faults
from surgeon.memory import HELP, memory_error
from surgeon.ranks import group
from surgeon.visible import visible

# What a user can mend by naming another path; all other errors of the system are the environment's.
_OF_PATHS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT)

_LONGEST_MESSAGE = 4000  # characters: a screen or two, and no flood, whatever a file or a server put into it


class Interrupted(BaseException):
    """The user, or the system, asked the process to end; `code` is what it ends with."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def run_to_its_end(command: Callable[[], object]) -> None:
    """Run the command line and turn errors, and requests to end, into one message and an exit code."""
    _open_streams()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    with _ending():
        answer_faults(_end_at_once)
        if group.started()[0] > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # results are the first rank's to print
        try:
            command()
        finally:
            sys.stdout.flush()  # here, where what goes wrong with it is one message, and not when Python ends


def _open_streams() -> None:
    """Have the three streams take whatever is written to them, also where nobody reads, or not in UTF-8.

    What is printed is the least of a command: when its reader has gone, the work and its exit code are what they are.
    """
    with suppress(OSError):  # where it cannot be opened, nothing else can either, and that is told
        while (at := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass  # one that was closed: the next file that is opened would stand in its place, and be written to
        os.close(at)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _Unread(stream))


class _Unread:
    """A stream whose reader may leave: what is written from then on goes nowhere."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def _ending() -> Iterator[None]:
    try:
        yield
    except (SurgeonError, MemoryError, OSError, RuntimeError, ImportError) as error:
        _explain(error)
    except Interrupted as interrupted:
        if group.speaks():
            print("interrupted: what was finished is kept, and the same command goes on from there", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(interrupted.code)  # without waiting for threads that still copy, flush or measure


def _explain(error: BaseException) -> None:
    """End with what is known of an error; one that is a defect of ours goes on as it is."""
    if isinstance(error, EnvironmentFailure):
        _fail(*error.said, code=error.exit_code)
    memory = memory_error(error)
    if memory is not None:
        said = next(iter(str(memory).strip().splitlines()), "")[:200] or type(memory).__name__
        _fail(f"out of memory ({said}); {HELP}", code=EnvironmentFailure.exit_code)
    if isinstance(error, SurgeonError):
        _fail(*error.said, code=error.exit_code)
    if not isinstance(error, OSError):
        raise error
    where = f"{error.filename}: " if error.filename else ""
    why = error.strerror or str(error) or type(error).__name__
    if error.errno in _OF_PATHS:
        _fail(f"{where}{why}; name another path", code=InputError.exit_code)
    again = "what was finished is kept, run the same command again"
    _fail(f"{where}{why}; {again}", code=EnvironmentFailure.exit_code)


def _interrupt(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once, which loses nothing either
    raise Interrupted(number)


def _end_at_once(message: str, mendable: bool) -> None:
    """End the process from within a fault, where nothing but this is safe any more."""
    os.write(2, f"error: {visible(message)}\n".encode())
    os._exit(InputError.exit_code if mendable else EnvironmentFailure.exit_code)


def _fail(*messages: str, code: int) -> None:
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    head = "\033[1;31merror:\033[0m" if coloured else "error:"
    for message in messages if group.speaks() else ():  # a line each: no name can end it and begin another
        line = visible(message[:_LONGEST_MESSAGE])
        print(f"{head} {line}{' ...' if len(message) > _LONGEST_MESSAGE else ''}", file=sys.stderr)
    if group.world() > 1:  # without waiting for threads that wait for other ranks
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
