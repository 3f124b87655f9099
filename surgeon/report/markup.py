"""Pages and cards are Jinja2 templates beside this file; whatever a file holds goes through one escaper per language.

HTML escapes by itself, JSON in a script has `drawing.script_data`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.report.charts import PALETTE
from surgeon.report.words import count, interval, number, percent, size, stopped_note
from surgeon.visible import visible

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
_FILTERS: dict[str, Callable[..., str]] = {
    "count": count, "interval": interval, "number": number,
    "percent": percent, "size": size, "stopped": stopped_note, "visible": visible,
}  # fmt: skip


def markdown(text: str) -> str:
    """Return text on one line, with nothing that Markdown or HTML would take for its own, also where a line begins."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|!&~$])", r"\\\1", visible(text))
    return re.sub(r"^(\s*\d*)([-+=:.)])", r"\1\\\2", escaped)


def markdown_code(text: str) -> str:
    """Return text as inline code, whatever it holds."""
    text = visible(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|")


def yaml_text(text: str) -> str:
    """Return text as a YAML scalar on one line, in quotes if it could be anything else; JSON's quoting is YAML's."""
    plain = re.fullmatch(r"(?:hf://|builtin:)?[A-Za-z][\w./@-]*", text, re.ASCII)
    return text if plain and text.lower() not in ("true", "false", "null", "yes", "no", "on", "off") else quoted(text)


def quoted(text: str) -> str:
    """Return text in double quotes, as YAML, JSON and Python read it, on one line."""
    return json.dumps(visible(text), ensure_ascii=False)


def svg_id(text: str) -> str:
    """Return text as an id in a drawing: other characters than of names stand as their numbers."""
    return re.sub(r"[^A-Za-z0-9.-]", lambda found: f"_{ord(found[0]):x}_", text)


def rendered(name: str, **values: Any) -> str:
    """Fill a template in; in HTML, text is escaped, and the pages' colours and style are at hand."""
    from markupsafe import Markup

    is_page = name.endswith(".html")
    look = {"palette": PALETTE, "style": Markup((HERE / "page.css").read_text(encoding="utf-8"))} if is_page else {}
    return str(_environment(is_page).get_template(name).render(**look, **values))


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
