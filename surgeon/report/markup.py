"""Pieces of HTML that the page is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from surgeon.report.data import Perplexity
from surgeon.report.svg import Figure
from surgeon.report.words import from_log, number


def count(number_of: int, thing: str) -> str:
    """Return a number of things in words."""
    return f"{number_of:,} {thing}{'' if number_of == 1 else 's'}"


def table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    foot: Sequence[str] = (),
    sortable: bool = False,
    words: frozenset[int] = frozenset(),
) -> str:
    """Return a table that scrolls sideways on its own; cells are HTML, or whole `<td>` elements.

    `words` are the columns, other than the first, that hold text.
    """

    def head(i: int, title: str) -> str:
        return f'<th scope="col"{_word(i, words)}>{title}</th>'

    def line(cells: Sequence[str]) -> str:
        first, *rest = cells
        return f'<tr><th scope="row">{first}</th>' + "".join(
            cell if cell.startswith("<td") else f"<td{_word(i, words)}>{cell}</td>" for i, cell in enumerate(rest, 1)
        )

    body = "</tr>".join([*(line(row) for row in rows), ""])
    ending = f"<tfoot>{line(foot)}</tr></tfoot>" if foot else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table{' data-sortable' if sortable else ''}><caption>{escape(caption)}</caption>"
        f"<thead><tr>{''.join(head(i, title) for i, title in enumerate(heads))}</tr></thead>"
        f"<tbody>{body}</tbody>{ending}</table></div>"
    )


def _word(column: int, words: frozenset[int]) -> str:
    return ' class="word"' if column in words else ""


def drawing(figure: Figure) -> str:
    """Return a figure with its caption."""
    caption = f"<strong>{escape(figure.title)}.</strong> {escape(figure.description)}"
    caption = caption.replace(" %", "\u00a0%")
    return f"<figure><figcaption>{caption}</figcaption>{figure.inline()}</figure>"


def times(ratio: float) -> str:
    """Return a multiple of the base's perplexity, coloured if it is worse."""
    kind = " much-worse" if math.isnan(ratio) or ratio >= 10 else " worse" if ratio >= 1.05 else ""
    return f'<span class="ratio{kind}">×{number(ratio)}</span>'


def sorted_by(value: float, content: str) -> str:
    """Return a cell that its column is sorted by."""
    return f'<td data-value="{value:.6g}">{content}</td>'


def measured(found: Perplexity, log: float | None = None) -> str:
    """Return the cell of a perplexity; `log` is the logarithm of its ratio to the base's."""
    order = found.log_perplexity if math.isfinite(found.log_perplexity) else 1e9
    ratio = ""
    if log is not None:
        ratio = " " + times(from_log(log))
    return sorted_by(order, f"{number(found.perplexity)}{ratio}")
