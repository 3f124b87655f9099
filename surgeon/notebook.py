"""What objects show of themselves in a notebook: a caption and a small table, of plain HTML, or a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import import_module
from typing import Any

# What draws an object of a room below: named here, since drawing lies above, and loaded when a notebook asks.
_DRAWN_BY = {"region": "surgeon.report.shown:region_figure", "report": "surgeon.report.shown:report_figure"}


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as HTML; all text is escaped, columns but the first are numbers."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(map(_cell, range(len(row)), row))}</tr>" for row in rows)
    shown = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if heads else ""
    return f"<div><p>{escape(caption)}</p>{shown}</div>"


def picture(kind: str, of: Any, *chosen: Any) -> Any:
    """Return the picture of a region or a report, which a notebook shows; None if there is none."""
    module, _, name = _DRAWN_BY[kind].partition(":")
    return getattr(import_module(module), name)(of, *chosen)


def _cell(place: int, text: str) -> str:
    return f'<td style="text-align:{"right" if place else "left"}">{escape(text)}</td>'
