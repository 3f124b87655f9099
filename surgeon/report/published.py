"""A report, and the manifest of a run, as others may see them: of this machine's folders they say nothing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from surgeon import inside
from surgeon.checkpoint.address import last_part, origin_without_path, recipe_without_paths, without_paths
from surgeon.errors import InputError
from surgeon.inside import replacing
from surgeon.report.data import Report
from surgeon.report.html import write_page
from surgeon.report.sentences import headline
from surgeon.report.story import tell
from surgeon.write.marker import MANIFEST, RECIPE, read_own


def published(report: Report) -> Report:
    """Return the report with the last part of each local path only."""
    variants = {}
    for name, item in report.variants.items():
        steps = [step.model_copy(update={"settings": without_paths(step.settings)}) for step in item.steps]
        path = f"variants/{name}" if item.path else None
        variants[name] = item.model_copy(update={"path": path, "steps": steps})
    name = last_part(report.model.name)
    said = {
        key: [line.replace(report.model.name, name) for line in getattr(report.model, key)]
        for key in ("left_out", "notes")
    }
    model = report.model.model_copy(update={"name": name, **said})
    recipe = recipe_without_paths(report.recipe)
    return report.model_copy(update={"model": model, "variants": variants, "recipe": recipe})


def published_manifest(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's manifest as it is sent: without the files of its report, and the folders of this machine."""
    manifest = without_paths({key: run[key] for key in run if key in ("model", "corpus")})
    drawn = run["corpus"].get("drawn_from") if isinstance(run.get("corpus"), dict) else None
    if isinstance(drawn, dict):
        manifest["corpus"]["drawn_from"] = {
            code: {**said, "source": origin_without_path(str(said.get("source", "")))}
            for code, said in drawn.items()
            if isinstance(said, dict)
        }
    return {key: manifest.get(key, value) for key, value in run.items() if key != "report"}


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
