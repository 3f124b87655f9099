"""What objects show of themselves in a notebook: a caption and a small table, of plain HTML, or a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import import_module
from typing import Any

# What regions and reports show of themselves and what is made in files above theirs: named here, loaded when asked for.
_VIEWS = {
    "region": "surgeon.report.figures:region_figure",
    "report": "surgeon.report.figures:report_figure",
    "roles": "surgeon.region.dimensions:by_role",
}


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as HTML; all text is escaped, columns but the first are numbers."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(map(_cell, range(len(row)), row))}</tr>" for row in rows)
    shown = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if heads else ""
    return f"<div><p>{escape(caption)}</p>{shown}</div>"


def view(kind: str, of: Any, *chosen: Any) -> Any:
    """Return a view of a region or a report: its picture, or a region's entries by role."""
    module, _, name = _VIEWS[kind].partition(":")
    return getattr(import_module(module), name)(of, *chosen)


def _cell(place: int, text: str) -> str:
    return f'<td style="text-align:{"right" if place else "left"}">{escape(text)}</td>'
