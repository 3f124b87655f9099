"""`manifest.json`: what went in and what came out, so that a run can be repeated and checked."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surgeon.checkpoint.address import last_part, origin_without_path
from surgeon.checkpoint.fingerprint import source_file_hashes
from surgeon.checkpoint.hashing import file_hash
from surgeon.plan.plan import Plan
from surgeon.text.corpora import Corpus

_PACKAGES = ("model-surgeon", "torch", "transformers", "safetensors", "numpy", "ml-dtypes", "tokenizers", "datasets")


def environment(device: str) -> dict[str, Any]:
    """Return what the figures may depend on: versions, platform, processors."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "device": device,
        "packages": versions,
    }


def manifest(plan: Plan, outputs: Mapping[Path, str], report: Sequence[Path], device: str, jobs: int) -> dict[str, Any]:
    """Collect seeds, versions, and the SHA-256 of inputs and outputs.

    `outputs` are known by now; they come out the same whenever the run is repeated. The files of `report`, which
    hold timings, do not, and are named apart from them.
    """
    checkpoint = plan.checkpoint
    seeds = {name: seed for name, region in plan.regions.items() if (seed := region.seed) is not None}
    return {
        "name": plan.recipe.name,
        "environment": environment(device),
        "model": {"source": last_part(checkpoint.source.name), "revision": checkpoint.source.revision},
        "seeds": seeds,
        "inputs": {path.name: digest for path, digest in source_file_hashes(checkpoint, jobs).items()},
        "corpus": {
            "name": plan.corpus.name,
            "text_sha256": _text_hashes(plan.corpus, _languages(plan)),
            "drawn_from": _origins(plan.corpus, _languages(plan)),
        },
        "outputs": {path.relative_to(plan.output).as_posix(): digest for path, digest in outputs.items()},
        "report": {path.relative_to(plan.output).as_posix(): file_hash(path) for path in report},
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which inputs and versions of two manifests differ, if their outputs do; [] if those are the same bytes."""
    if not isinstance(before.get("outputs"), dict) or before.get("name") != now["name"]:
        return []
    outputs = _differing(before["outputs"], now["outputs"])
    if not outputs:
        return []
    lines = [f"{len(outputs)} files came out other than those of the recipe's own run, first {outputs[0]}"]
    there, here = _flat(before), _flat(now)
    for key in ("inputs", "corpus", "seeds", "environment"):
        names = sorted(name for name in {*there, *here} if name.startswith(f"{key}."))
        changed = [name for name in names if there.get(name) != here.get(name)]
        lines += [f"{name}: {there.get(name, '(none)')} there, {here.get(name, '(none)')} here" for name in changed]
    return lines if len(lines) > 1 else [*lines, "inputs and versions are the same"]


def _differing(before: Any, now: Any) -> list[str]:
    there, here = (part if isinstance(part, dict) else {} for part in (before, now))
    return sorted(name for name in {*there, *here} if there.get(name) != here.get(name))


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the leaves of nested mappings by their dotted path."""
    result: dict[str, str] = {}
    for key, value in data.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return result


def _languages(plan: Plan) -> list[str]:
    scored = [language for spec in plan.sampled_scores() for language in spec.languages]
    return sorted({*scored, *plan.verify_languages})


def _text_hashes(corpus: Corpus, languages: Iterable[str]) -> dict[str, dict[str, str]]:
    result = {}
    for language in languages:
        text = corpus.text(language)
        result[language] = {"score": text.score_hash, "evaluate": text.evaluate_hash}
    return result


def _origins(corpus: Corpus, languages: Iterable[str]) -> dict[str, dict[str, str | None]]:
    texts = {language: corpus.text(language) for language in languages}
    return {
        language: {"source": origin_without_path(text.origin), "revision": text.revision}
        for language, text in texts.items()
    }
