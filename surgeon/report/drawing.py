"""From Vega-Lite specifications to pictures, in one look; see `charts` for their colours."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.store import keep_value, path_of, value
from surgeon.inside import replacing
from surgeon.memory import require_room_for_figures
from surgeon.report.charts import PALETTE, Spec
from surgeon.report.markup import svg_id

_PNG = b"\x89PNG\r\n\x1a\n"
_EXPOSE = "window.vegaEmbed = vegaEmbed;"
_MOST_KEPT = 400  # drawings in the cache folder, of some 50 kB each
ZOOM = 2.0  # pixels of a PNG per unit of the drawing


@dataclass(frozen=True)
class Figure:
    """A picture: `name` is its file's stem, `title` and `caption` say in words all that a reader needs to know.

    `spec` is Vega-Lite. `fluid` if its width may follow the page's. `key` if it is among a page's first two. `scans`
    are the regions whose scans it shows.
    """

    name: str
    title: str
    caption: str
    spec: Spec
    fluid: bool = False
    key: bool = False
    scans: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Figure({self.name}: {self.title})"

    def _repr_svg_(self) -> str:
        """Show the figure in a notebook."""
        return themed(svg(self), dark=False)


def svg(figure: Figure) -> str:
    """Draw a figure for a page: colours stay variables, and no id is another figure's.

    To a screen reader it is one picture, under its title; the tables hold what its marks say.
    """
    require_room_for_figures()
    import vl_convert

    spec = json.dumps(figure.spec, allow_nan=False)
    drawn = _kept("svg", spec, lambda spec: vl_convert.vegalite_to_svg(spec).encode("utf-8")).decode("utf-8")
    drawn = re.sub(r' (?:aria-[a-z]+|role)="[^"]*"', "", drawn)
    # Ids are numbered through a process; here they begin anew, so that a picture does not depend on those before it.
    for number, name in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', drawn))):
        own = f"{svg_id(figure.name)}-{number}"
        drawn = drawn.replace(f'id="{name}"', f'id="{own}"').replace(f"url(#{name})", f"url(#{own})")
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(figure.title)}" ', 1)


def _kept(kind: str, source: str, make: Callable[[str], bytes]) -> bytes:
    """Return what was made of the same source before, out of the cache folder; else make it, and keep it there.

    A run's page and cards show the same pictures, and the next run mostly shows them again; making the first takes
    seconds. Of the drawings the latest are kept.
    """
    made_by = f"{version('vl-convert-python')} {kind}\n{source}"
    path = path_of("page", sha256(made_by.encode()), f".{kind}")
    held = value(path)
    if held is not None:
        return held
    content = make(source)
    keep_value(path, content)
    with suppress(OSError):  # another process may be clearing up, too
        drawings = [file for file in path.parent.iterdir() if file.suffix in (".svg", ".png")]
        for file in sorted(drawings, key=lambda file: file.stat().st_mtime)[:-_MOST_KEPT]:
            file.unlink()
    return content


def themed(drawn: str, dark: bool) -> str:
    """Fill in the colours of a drawing, on its own ground, so that it looks the same wherever it is shown."""
    for name, pair in PALETTE.items():
        drawn = drawn.replace(f"var(--{name})", pair[dark])
    ground = f'<rect width="100%" height="100%" fill="{PALETTE["ground"][dark]}"/>'
    return re.sub(r"(<svg[^>]*>)", rf"\1{ground}", drawn, count=1)


def write_pictures(figure: Figure, drawn: str, folder: str | Path) -> list[Path]:
    """Write NAME.svg and NAME-dark.svg, and of the key figures both as PNG; return the files."""
    require_room_for_figures()
    import vl_convert

    files = []
    for suffix, dark in (("", False), ("-dark", True)):
        picture = themed(drawn, dark)
        contents = {"svg": picture.encode("utf-8")}
        if figure.key:
            contents["png"] = _kept(
                "png", picture, lambda drawing: repacked(vl_convert.svg_to_png(drawing, scale=ZOOM))
            )
        for ending, content in contents.items():
            path = Path(folder) / f"{figure.name}{suffix}.{ending}"
            with replacing(path) as staged:
                staged.write_bytes(content)
            files.append(path)
    return files


def runtime() -> str:
    """Return the script that makes specifications live: Vega, Vega-Lite and Vega-Embed of the drawing library."""
    require_room_for_figures()
    import vl_convert

    return _kept("js", _EXPOSE, lambda script: vl_convert.javascript_bundle(script).encode("utf-8")).decode("utf-8")


def script_data(data: Any) -> str:
    """Return data as JSON that may stand inside a script element: no text of it can end the element."""
    return re.sub(
        r"[<>&\u2028\u2029]",
        lambda found: f"\\u{ord(found[0]):04x}",
        json.dumps(data, ensure_ascii=False, allow_nan=False),
    )


def png(levels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
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
    at = len(_PNG)
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        yield content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        at += 12 + length


def _joined(chunks: list[tuple[bytes, bytes]]) -> bytes:
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return _PNG + b"".join(packed)
