"""Every door through which foreign bytes come in: what is put there, and what comes of it.

A door is tried by writing bytes to a file and doing what the command line does with such a file, up to what would be
shown. It holds if that ends well or with one clear error, and nothing that is shown could move a cursor.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from surgeon.errors import SurgeonError
from surgeon.json_text import to_json
from surgeon.views.inspection import inspection_view, look_at
from surgeon.views.terminal import render
from surgeon.visible import json_escaped, visible, visible_lines


@dataclass(frozen=True)
class Door:
    """`seeds` are whole files of the kind; `enter` reads one. `kind` says what a mutation may know of its form."""

    name: str
    kind: str  # bytes, text, json, safetensors
    seeds: tuple[bytes, ...]
    enter: Callable[[bytes], None]


def show(view: RenderableType) -> None:
    """Print as the command line does; whatever the names are, only plain text comes out."""
    out = StringIO()
    render(Console(file=out, width=100), view)
    assert visible_lines(out.getvalue()) == out.getvalue()


def show_json(data: Any) -> None:
    """Print as `--json` does, and read it again."""
    text = to_json(data)
    lines = [json_escaped(line) for line in text.split("\n")]
    assert all(visible(line) == line for line in lines)
    assert json.loads("\n".join(lines)) == json.loads(text)


def inspected(path: Path) -> None:
    found = look_at(str(path))
    show(inspection_view(found))
    show_json(found)


def holds(door: Door, data: bytes) -> str:
    """Try a door; returns what kind of end it came to. Anything but an error of ours, or of the system, comes out."""
    try:
        door.enter(data)
    except SurgeonError as error:
        return type(error).__name__
    except OSError as error:  # names that no file can have; the command line says what the system says
        return f"OSError {error.errno}"
    return "done"
