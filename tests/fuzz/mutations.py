"""Mutations of whole files: of their bytes, and where the form is known, of the data that they stand for."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

from doors import Door

# Values that some reader or other takes for something else.
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 256, 2**31, 2**32, 2**33, 2**62, 2**63, 2**64, 10**30, 10**400,
    0.5, -0.0, 1e308, float("inf"), float("-inf"), float("nan"),
    "", "x", "0", "1", "-1", "\x00", "\x1b[2J", "\x1b]8;;http://x\x07y", "a\nerror: forged", "\u202e", "\u0661",
    "\u00b2", "\ud800", "../x", "/etc/passwd", "x" * 300, "[/]", "[link=http://x]y[/link]", "{a}", "F32", "U8", "BF16",
    "F4", "gaps", "bits",
    "surgeon-region", "surgeon-patch", "surgeon-freeze", "model.safetensors", "javascript:alert(1)", "Infinity", "NaN",
    [], {}, [[]], [0], [1], [-1], [0, 10**30], [2**33, 1], [1, 2**26], [1] * 65, [True], ["1"], [1.0], [None],
    {"": 0}, {"shape": [2**40]}, [[[[[[]]]]]],
)  # fmt: skip
TOKENS = (
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\n", b"\r", b"\t", b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80",
    b"---\n", b"&a ", b"*a", b"<<: ", b"!!int ", b"? ", b"- ", b"|\n", b"\\ud800", b"1e999", b"NaN", b"2020-13-45",
    b"\x1b[31m", b"\xe2\x80\xae", b"PAR1", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"}q\x00", b"R", b".",
    b"javascript:", b"0x", b"1_0", b"12:30:45", b"sweep: {a: {set: b, to: [1, 2]}}",
)  # fmt: skip
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**32 - 1, 2**33, 2**62, 2**63, 2**64 - 1)


def mutated(door: Door, random: Random) -> bytes:
    """Return one of a door's seeds, changed in one to a few places."""
    data = random.choice(door.seeds)
    ways: dict[str, Callable[[bytes, Random], bytes]] = {"json": _in_json, "safetensors": _in_safetensors}
    way = ways.get(door.kind)
    if way is not None and random.random() < 0.75:
        try:
            data = way(data, random)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass  # one that was mutated before, and is none of its kind any more
        else:
            if random.random() < 0.85:
                return data
    for _ in range(1 + int(min(random.expovariate(0.7), 12))):
        data = _in_bytes(data, random, door.seeds)
    return data


def _in_bytes(data: bytes, random: Random, seeds: tuple[bytes, ...]) -> bytes:
    at, kind = random.randrange(len(data) + 1), random.randrange(9)
    until = min(len(data), at + 1 + int(min(random.expovariate(0.1), 100)))
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + bytes(random.randrange(256) for _ in range(1 + random.randrange(4))) + data[at:]
    if kind == 2:
        return data[:at] + data[until:]
    if kind == 3:
        return data[:at] + random.choice(TOKENS) + data[random.choice((at, until)) :]
    if kind == 4:
        return data[:until] + data[at:until] * (1 + random.randrange(4)) + data[until:]
    if kind == 5:
        number, width = random.choice(NUMBERS), random.choice((1, 2, 4, 8))
        return data[:at] + (number % (1 << 8 * width)).to_bytes(width, "little") + data[at + width :]
    if kind == 6:
        return data[:at]
    if kind == 7:
        other = random.choice(seeds)
        return data[:at] + other[random.randrange(len(other) + 1) :]
    start = random.randrange(len(data) + 1)
    return data[:at] + data[start : start + until - at] + data[until:]


def _in_json(data: bytes, random: Random) -> bytes:
    """Change a few values of the data, or the text at one place so that it is hardly JSON any more."""
    if random.random() < 0.02:
        depth = random.choice((90, 150, 1000, 60_000))
        opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
        return data[: random.choice((0, 1))] + opening * depth + b"0" + closing * depth
    found = json.loads(data)
    for _ in range(1 + int(min(random.expovariate(0.8), 6))):
        found = _changed(found, random)
    return json.dumps(found, ensure_ascii=random.random() < 0.9).encode(errors="surrogatepass")


def _places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(data, dict):
        for key, value in data.items():
            found += _places(value, (*path, key))
    elif isinstance(data, list):
        for i, value in enumerate(data[:50]):
            found += _places(value, (*path, i))
    return found


def _changed(data: Any, random: Random) -> Any:
    places = _places(data)
    path, kind = random.choice(places), random.randrange(8)
    if not path:
        return random.choice(STRANGE) if random.random() < 0.1 else data
    inside = data
    for part in path[:-1]:
        inside = inside[part]
    key = path[-1]
    if kind <= 2:
        inside[key] = copy.deepcopy(random.choice(STRANGE))
    elif kind == 3:
        del inside[key]
    elif kind == 4 and isinstance(inside, dict):
        renamed = random.choice([value for value in STRANGE if isinstance(value, str)])
        inside[renamed] = inside.pop(key)
    elif kind == 5:
        other = data
        for part in random.choice(places):
            other = other[part]
        inside[key] = copy.deepcopy(other)
    elif kind == 6 and isinstance(inside, list):
        inside.insert(random.randrange(len(inside) + 1), copy.deepcopy(random.choice(STRANGE)))
    elif type(inside[key]) is int:
        inside[key] += random.choice((-1, 1, 8, -8, 255, 2**32))
    elif isinstance(inside[key], str):
        inside[key] += random.choice([value for value in STRANGE if isinstance(value, str)])
    return data


def _in_safetensors(data: bytes, random: Random) -> bytes:
    """Change the header's data, or the JSON inside its metadata, and mostly give it the length that it then has."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.get("__metadata__", {})
    tables = [key for key, value in metadata.items() if value.startswith("{")]
    if tables and random.random() < 0.6:
        key = random.choice(tables)
        metadata[key] = _in_json(metadata[key].encode(), random).decode(errors="surrogatepass")
    elif random.random() < 0.75:
        for _ in range(1 + int(min(random.expovariate(0.8), 6))):
            header = _changed(header, random)
            if not isinstance(header, dict):
                break
    else:  # one that fits, of tensors that are other than they were
        _resized(header, random)
    if random.random() < 0.15:
        body = _in_bytes(body, random, (data,))
    text = json.dumps(header, ensure_ascii=random.random() < 0.9).encode(errors="surrogatepass")
    count = len(text) if random.random() < 0.97 else random.choice(NUMBERS) % (1 << 64)
    return count.to_bytes(8, "little") + text + body


def _resized(header: dict[str, Any], random: Random) -> None:
    """Give tensors other shapes and dtypes of the same size, or other names."""
    names = [name for name in header if name != "__metadata__"]
    for name in random.sample(names, min(len(names), 1 + random.randrange(3))):
        entry = header[name]
        begin, end = entry["data_offsets"]
        size = end - begin
        kind = random.randrange(4)
        if kind == 0:
            entry["dtype"], width = random.choice((("U8", 1), ("F8_E4M3", 1), ("F16", 2), ("BF16", 2), ("I64", 8)))
            entry["shape"] = [size // width] if random.random() < 0.5 else [1, size // width, 1]
        elif kind == 1:
            entry["shape"] = random.choice(
                ([*entry["shape"], 1], [1, *entry["shape"]], entry["shape"][::-1], [size // 4])
            )
        elif kind == 2:
            number = random.choice(("0", "1", "7", "99999999", "9" * 30, "\u0661", "\u00b2", "-1", ""))
            header[name.replace(".0.", f".{number}.").replace(".1.", f".{number}.")] = header.pop(name)
        else:
            header[random.choice([value for value in STRANGE if isinstance(value, str)])] = header.pop(name)
