"""Text files as they are distributed: compressed or not, in UTF-8, or in UTF-16 and UTF-32 where a mark says so.

What a file unpacks to is bounded by its size, so that a small file cannot fill the memory.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from surgeon.errors import InputError

MOST_TIMES = 100  # the size of a file that its text may have: beyond that it repeats itself, and is no text
ALWAYS = 1 << 24  # bytes or characters that it may have in any case
_MARKS = (  # the longer ones first, since one begins with another
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_KINDS = (
    (b"\x1f\x8b", "gzip; name it .gz"), (b"BZh", "bzip2; name it .bz2"), (b"\xfd7zXZ\0", "xz; name it .xz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard; name it .zst"), (b"PAR1", "Parquet; name it .parquet"),
    (b"PK\3\4", "a ZIP archive; unpack it first"), (b"%PDF", "PDF; take the text out of it first"),
    (b"ARROW1", "Arrow; save it as .parquet"),
)  # fmt: skip
_DAMAGES = (OSError, EOFError, zlib.error, lzma.LZMAError)


def _zstandard(path: Path) -> Any:
    import pyarrow  # the standard library reads it from Python 3.14 on

    return pyarrow.input_stream(path, compression="zstd")


PACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstandard}


@contextmanager
def opened_text(path: Path) -> Iterator[IO[str]]:
    """Open a file for reading as text, all its line ends as `\\n`.

    What goes wrong while it is read inside `with` is told as well.

    Raises:
        InputError: it is not there, damaged, no text, or unpacks to too much.
    """
    try:
        with opened_bytes(path) as data:
            start = data.peek(4)[:4]
            encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
            with io.TextIOWrapper(data, encoding=encoding) as text:
                yield text
    except UnicodeDecodeError as error:
        raise _not_text(path, error) from None


@contextmanager
def opened_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file as the bytes that it unpacks to, see `opened_text`."""
    unpack = PACKED.get(path.suffix.lower())
    try:
        if unpack is None:
            with path.open("rb") as file:
                yield file
        else:
            with unpack(path) as packed:
                data: io.BufferedReader = io.BufferedReader(_Bounded(path, packed), 1 << 16)
                with closing(data):
                    yield data
    except _DAMAGES as error:
        damaged = "cannot be read" if unpack is None else f"not a {path.suffix} file that can be unpacked"
        raise InputError(f"{path}: {damaged} ({str(error) or type(error).__name__})") from None


class _Bounded(io.RawIOBase):
    """Hands on what is unpacked, until it is too much."""

    def __init__(self, path: Path, packed: Any) -> None:
        self._path, self._packed = path, packed
        self._left = max(MOST_TIMES * path.stat().st_size, ALWAYS)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._packed.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise InputError(f"{self._path}: unpacks to more than {MOST_TIMES} times its size")
        buffer[: len(data)] = data
        return len(data)


def _not_text(path: Path, error: UnicodeDecodeError) -> InputError:
    with opened_bytes(path) as data:
        start = data.peek(8)[:8]
        kind = next((name for magic, name in _KINDS if start.startswith(magic)), None)
        if kind is not None:
            return InputError(f"{path}: not UTF-8 text but {kind}")
        if error.encoding != "utf-8":
            return InputError(f"{path}: begins with the mark of {error.encoding}, and is damaged ({error.reason})")
        line = 1
        for line, bytes_of_line in enumerate(data, 1):  # noqa: B007
            try:
                bytes_of_line.decode()
            except UnicodeDecodeError as of_line:
                error = of_line
                break
    return InputError(
        f"{path}: not UTF-8 text (line {line}, byte 0x{error.object[error.start]:02x}); convert it, for instance with "
        "`iconv -f LATIN1 -t UTF-8`"
    )
