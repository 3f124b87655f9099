"""Hooks of the documentation's site (`make docs`): what pages link to outside docs/ becomes part of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
BROUGHT = {
    "../CONTRIBUTING.md": "contributing.md",
    "../SECURITY.md": "security.md",
    "../examples/first_look.ipynb": "first_look.ipynb",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the files."""
    for link, name in BROUGHT.items():
        files.append(File.generated(config, name, content=(ROOT / "docs" / link).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to them to where they are now."""
    for link, name in BROUGHT.items():
        markdown = markdown.replace(f"]({link})", f"]({name})")
    return markdown
