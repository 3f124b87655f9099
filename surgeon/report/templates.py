"""What holds the markup of page and card: Jinja2 templates beside this file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from surgeon.report.words import bounds, count, interval, number, percent, size, stopped_note
from surgeon.text.languages import language_name
from surgeon.visible import visible

HERE = Path(__file__).parent
_FILTERS: dict[str, Callable[..., str]] = {
    "bounds": bounds, "count": count, "interval": interval, "language_name": language_name, "number": number,
    "percent": percent, "size": size, "stopped": stopped_note, "visible": visible,
}  # fmt: skip


def rendered(name: str, filters: dict[str, Callable[..., str]], **values: Any) -> str:
    """Fill a template in; in HTML, text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=name.endswith(".html"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= _FILTERS | filters
    return environment.get_template(name).render(**values)
