"""One escaper per language that a card or a page is written in; whatever a file holds goes through one of them.

HTML pages escape by themselves (`templates.py`), JSON in a script has `drawing.script_data`.
"""

from __future__ import annotations

import json
import re

from surgeon.visible import visible


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
