"""PNG files, as far as figures need them: one made of an array, and one packed tighter."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_HEAD = b"\x89PNG\r\n\x1a\n"


def encoded(levels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """Return a PNG of a byte per pixel.

    Args:
        levels: uint8 of shape (rows, columns).
        palette: uint8 of shape (256, 3), the colour of each level.
    """
    rows = np.pad(levels, ((0, 0), (1, 0)))  # each row begins with the kind of its filter, here none
    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 8, 3, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", zlib.compress(rows.tobytes(), 9))]
    return _joined([*chunks, (b"IEND", b"")])


def repacked(content: bytes) -> bytes:
    """Return the same picture in a fraction of the bytes: the renderer compresses for speed."""
    chunks = list(_chunks(content))
    pixels = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    before = [chunk for chunk in chunks if chunk[0] not in (b"IDAT", b"IEND")]
    return _joined([*before, (b"IDAT", zlib.compress(pixels, 7)), (b"IEND", b"")])


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_HEAD)
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        yield content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        at += 12 + length


def _joined(chunks: list[tuple[bytes, bytes]]) -> bytes:
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return _HEAD + b"".join(packed)
