"""What holds the markup of page and card: Jinja2 templates beside this file."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.report.words import count, interval, number, percent, size, stopped_note
from surgeon.visible import visible

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
_FILTERS: dict[str, Callable[..., str]] = {
    "count": count, "interval": interval, "number": number,
    "percent": percent, "size": size, "stopped": stopped_note, "visible": visible,
}  # fmt: skip


def rendered(name: str, **values: Any) -> str:
    """Fill a template in; in HTML, text is escaped."""
    return str(_environment(name.endswith(".html")).get_template(name).render(**values))


@lru_cache
def _environment(escapes: bool) -> Environment:
    """Return what compiles templates, and keeps them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=escapes, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= _FILTERS
    return environment
