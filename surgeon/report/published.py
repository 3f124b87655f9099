"""A report, and the manifest of a run, as others may see them: of this machine's folders they say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgeon.checkpoint.address import last_part, origin_without_path, recipe_without_paths, without_paths
from surgeon.report.data import Report


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
