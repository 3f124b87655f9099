"""A run's page as a folder that is a static Space on the Hub: its page, figures and data, and the card that says so."""

from __future__ import annotations

import os
import re
from pathlib import Path

from surgeon import inside
from surgeon.checkpoint.storage import replacing
from surgeon.errors import InputError
from surgeon.report.data import Report
from surgeon.report.html import write_page
from surgeon.report.story import headline, tell


def write_space(output: str | Path, folder: str | Path) -> list[Path]:
    """Write the page of an output folder, as `index.html`, with its figures, `report.json` and a card; returns files.

    What the report says of this machine's folders does not go along.

    Raises:
        InputError: there is no report, or the folder holds files already that are no Space of ours.
    """
    report, target = _without_paths(Report.load(output)), Path(os.path.expanduser(folder))
    card = target / "README.md"
    if target.exists() and any(target.iterdir()) and not (card.is_file() and "sdk: static" in card.read_text("utf-8")):
        raise InputError(f"{target}: not empty, and no static Space; choose a new folder")
    page, *figures = write_page(report, target)
    inside.rename(page, target / "index.html")
    report.save(target / "report.json")
    name = re.sub(r"[^\w .-]+", " ", report.name).strip() or "report"
    text = f"""---
title: {name}
emoji: 🔬
colorFrom: yellow
colorTo: red
sdk: static
app_file: index.html
pinned: false
---

{headline(report, tell(report))}

A report of surgeon (the Python package `model-surgeon`). `report.json` holds every figure.
"""
    with replacing(card) as part:
        part.write_text(text, encoding="utf-8")
    return [target / "index.html", card, target / "report.json", *figures]


def _without_paths(report: Report) -> Report:
    """Return the report with the last part of each local path only."""
    model, where = report.model, Path(os.path.expanduser(report.model.name))
    named = where.name if where.is_absolute() or where.exists() else model.name
    variants = {
        name: item.model_copy(update={"path": f"variants/{name}" if item.path else None})
        for name, item in report.variants.items()
    }
    recipe = {**report.recipe, "model": named, "output": Path(str(report.recipe.get("output", "out"))).name}
    return report.model_copy(
        update={"model": model.model_copy(update={"name": named}), "variants": variants, "recipe": recipe}
    )
