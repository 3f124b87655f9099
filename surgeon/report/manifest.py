"""`manifest.json`: what went in and what came out, so that a run can be repeated and checked."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from surgeon.checkpoint.address import last_part, origin_without_path
from surgeon.checkpoint.fingerprint import source_file_hashes
from surgeon.checkpoint.hashing import file_hash
from surgeon.plan.plan import Plan
from surgeon.plan.texts import needed_languages

_PACKAGES = ("model-surgeon", "torch", "transformers", "safetensors", "numpy", "ml-dtypes", "tokenizers", "datasets")


def environment(device: str) -> dict[str, Any]:
    """Return what the figures may depend on: versions, platform, processors."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "device": device,
        "packages": {**_versions()},
    }


@cache  # a run asks for its report and for its manifest, and each answer takes files of all packages
def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def manifest(plan: Plan, outputs: Mapping[Path, str], report: Sequence[Path], device: str, jobs: int) -> dict[str, Any]:
    """Collect seeds, versions, and the SHA-256 of inputs and outputs.

    `outputs` are known by now; they come out the same whenever the run is repeated. The files of `report`, which
    hold timings, do not, and are named apart from them.
    """
    checkpoint = plan.checkpoint
    seeds = {name: seed for name, region in plan.regions.items() if (seed := region.kind.drawn_with) is not None}
    texts = {language: plan.corpus.text(language) for language in sorted(needed_languages(plan))}
    return {
        "name": plan.recipe.name,
        "environment": environment(device),
        "model": {"source": last_part(checkpoint.source.name), "revision": checkpoint.source.revision},
        "seeds": seeds,
        "inputs": {path.name: digest for path, digest in source_file_hashes(checkpoint, jobs).items()},
        "corpus": {
            "name": plan.corpus.name,
            "text_sha256": {
                language: {"score": text.score_hash, "evaluate": text.evaluate_hash} for language, text in texts.items()
            },
            "drawn_from": {
                language: {"source": origin_without_path(text.origin), "revision": text.revision}
                for language, text in texts.items()
            },
        },
        "outputs": {path.relative_to(plan.output).as_posix(): digest for path, digest in outputs.items()},
        "report": {path.relative_to(plan.output).as_posix(): file_hash(path) for path in report},
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which inputs and versions of two manifests differ, if their outputs do; [] if those are the same bytes."""
    if not isinstance(before.get("outputs"), dict) or before.get("name") != now["name"]:
        return []
    names = {*before["outputs"], *now["outputs"]}
    outputs = sorted(name for name in names if before["outputs"].get(name) != now["outputs"].get(name))
    if not outputs:
        return []
    lines = [f"{len(outputs)} files came out other than those of the recipe's own run, first {outputs[0]}"]
    earlier, later = _flat(before), _flat(now)
    for key in ("inputs", "corpus", "seeds", "environment"):
        keys = sorted(name for name in {*earlier, *later} if name.startswith(f"{key}."))
        lines += [
            f"{name}: {earlier.get(name, '(none)')} there, {later.get(name, '(none)')} here"
            for name in keys
            if earlier.get(name) != later.get(name)
        ]
    return lines if len(lines) > 1 else [*lines, "inputs and versions are the same"]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the leaves of nested mappings by their dotted path."""
    result: dict[str, str] = {}
    for key, value in data.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return result
