"""A run's page as a folder that is a static Space on the Hub: its page, figures and data, and the card that says so."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import yaml

from surgeon import inside
from surgeon.errors import InputError
from surgeon.inside import replacing
from surgeon.report.data import Report
from surgeon.report.html import write_page
from surgeon.report.published import published, published_manifest
from surgeon.report.sentences import headline
from surgeon.report.story import tell
from surgeon.write.marker import MANIFEST, RECIPE, read_own


def write_space(output: str | Path, folder: str | Path) -> list[Path]:
    """Write the page of an output folder, as `index.html`, with its figures, `report.json` and a card; returns files.

    What the report says of this machine's folders does not go along.

    Raises:
        InputError: there is no report, or the folder holds files already that are no Space of ours.
    """
    report, target = published(Report.load(output)), Path(os.path.expanduser(folder))
    card = target / "README.md"
    if target.exists() and any(target.iterdir()) and not (card.is_file() and "sdk: static" in card.read_text("utf-8")):
        raise InputError(f"{target}: not empty, and no static Space; choose a new folder")
    page, *figures = write_page(report, target)
    inside.rename(page, target / "index.html")
    report.save(target / "report.json")
    recipe = yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True)
    beside = {target / RECIPE: recipe}
    if run := read_own(Path(os.path.expanduser(output)) / MANIFEST):
        beside[target / MANIFEST] = json.dumps(published_manifest(run), indent=2, ensure_ascii=False) + "\n"
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
    for path, written in {**beside, card: text}.items():
        with replacing(path) as part:
            part.write_text(written, encoding="utf-8")
    return [target / "index.html", card, target / "report.json", *beside, *figures]
