"""The one door for JSON: bytes become plain data within limits, or one error that says why they do not.

What is read is small and shallow, whatever the bytes say: their number, and that of lists and objects, is looked at
before anything is built, the depth before anybody walks through it. Half characters, which no file could hold again,
are refused. What the data must be is said by who asks for them; the strict readers of numbers and shapes stand here.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LONGEST = 1 << 25  # bytes: the header of some 250,000 tensors
DEEPEST = 100  # lists and objects inside each other
MOST_PARTS = 1_000_000  # lists and objects; each takes some two hundred bytes of memory for as few as two of text
MOST_AXES = 32  # what every version of numpy can hold
_MOST = 2**63  # sizes are below that in every library
_HALF_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")


class NotPlain(ValueError):
    """The bytes are no JSON, are beyond a limit, or the data are not what they must be; the message says which."""


def parse_json(data: bytes, longest: int = LONGEST, unique: bool = True) -> Any:
    """Read JSON text; with `unique`, objects that name a key twice are refused, otherwise the last one counts.

    Raises:
        NotPlain: it is not JSON, or beyond the limits.
    """
    if len(data) > longest:
        raise NotPlain(f"longer than {longest:,} bytes")
    parts = data.count(b"[") + data.count(b"{")
    if parts > MOST_PARTS:
        raise NotPlain(f"more than {MOST_PARTS:,} lists and objects")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once if unique else None)
    except NotPlain:
        raise
    except RecursionError:
        raise NotPlain(f"lists and objects are nested more than {DEEPEST} deep") from None
    except ValueError as error:
        raise NotPlain(f"not JSON ({error})") from None
    halves = _HALF_ESCAPED.search(data) is not None
    if halves or parts > DEEPEST:
        _check_parts(value, halves)
    return value


def read_object(path: Path, longest: int = LONGEST, unique: bool = True) -> dict[str, Any]:
    """Read a file that holds a JSON object, and no more of it than the limit; a pipe of that name is not waited for.

    Raises:
        NotPlain: it holds something else; see `parse_json`.
        OSError: it cannot be read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        return as_object(parse_json(file.read(longest + 1), longest, unique), "it")


def as_object(value: Any, what: str) -> dict[str, Any]:
    """Return an object.

    Raises:
        NotPlain: it is none.
    """
    if not isinstance(value, dict):
        raise NotPlain(f"{what} is not a JSON object")
    return value


def as_texts(value: Any, what: str) -> dict[str, str]:
    """Return an object all of whose values are text.

    Raises:
        NotPlain: it is none.
    """
    texts = as_object(value, what)
    if not all(isinstance(item, str) for item in texts.values()):
        raise NotPlain(f"{what} must hold text only")
    return texts


def as_text(value: Any, what: str) -> str:
    """Return text.

    Raises:
        NotPlain: it is none.
    """
    if not isinstance(value, str):
        raise NotPlain(f"{what} is not text")
    return value


def as_size(value: Any, what: str) -> int:
    """Return a whole number from 0 on that every library can count to.

    Raises:
        NotPlain: it is none.
    """
    if type(value) is not int or not 0 <= value < _MOST:
        raise NotPlain(f"{what} is not a whole number from 0 on, or too large")
    return value


def as_shape(value: Any, what: str = "the shape") -> tuple[int, ...]:
    """Return the shape of an array that could exist: also where an axis is 0, the others must be possible.

    Raises:
        NotPlain: it is none.
    """
    if not isinstance(value, list) or len(value) > MOST_AXES:
        raise NotPlain(f"{what} is not a list of at most {MOST_AXES} axes")
    shape = tuple(as_size(length, "an axis") for length in value)
    if math.prod(length for length in shape if length) >= _MOST // 16:  # entries have up to 16 bytes
        raise NotPlain(f"{what} has more entries than any tensor can have")
    return shape


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise NotPlain(f"names '{twice}' twice")
    return result


def _check_parts(data: Any, halves: bool) -> None:
    """Walk through lists and objects, all of one depth at a time, without recursion."""
    level: list[Any] = [data]
    for _ in range(DEEPEST + 1):
        if halves:
            keys = (key for item in level if isinstance(item, dict) for key in item)
            if any(_HALF.search(text) for text in (*keys, *(item for item in level if isinstance(item, str)))):
                raise NotPlain("holds half a character (a lone surrogate)")
        parts = [item for item in level if isinstance(item, list | dict)]
        if not parts:
            return
        level = [child for part in parts for child in (part.values() if isinstance(part, dict) else part)]
    raise NotPlain(f"lists and objects are nested more than {DEEPEST} deep")
