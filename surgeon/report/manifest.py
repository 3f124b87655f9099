"""`manifest.json`: what went in and what came out, so that a run can be repeated and checked."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from surgeon.checkpoint.fingerprint import file_hashes, source_file_hashes
from surgeon.plan.plan import Plan
from surgeon.recipe.schema import SampledScore
from surgeon.text.corpora import Corpus
from surgeon.write.execute import Written

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


def manifest(
    plan: Plan, written: Mapping[str, Written], region_files: Mapping[str, Path], device: str, jobs: int
) -> dict[str, Any]:
    """Hash inputs and outputs (SHA-256 of whole files) and collect seeds and versions."""
    checkpoint = plan.checkpoint
    outputs = [*region_files.values(), *(path for item in written.values() for path in item.files)]
    hashes = file_hashes(outputs, jobs)
    seeds = {name: seed for name, region in plan.regions.items() if (seed := region.seed) is not None}
    return {
        "name": plan.recipe.name,
        "environment": environment(device),
        "model": {"source": checkpoint.source.name, "revision": checkpoint.source.revision},
        "seeds": seeds,
        "inputs": {path.name: digest for path, digest in source_file_hashes(checkpoint, jobs).items()},
        "corpus": {
            "name": plan.corpus.name,
            "text_sha256": _text_hashes(plan.corpus, _languages(plan)),
            "drawn_from": _origins(plan.corpus, _languages(plan)),
        },
        "outputs": {path.relative_to(plan.output).as_posix(): hashes[path] for path in outputs},
    }


def _languages(plan: Plan) -> list[str]:
    scored = [language for spec in plan.scores() if isinstance(spec, SampledScore) for language in spec.languages]
    return sorted({*scored, *plan.verify_languages})


def _text_hashes(corpus: Corpus, languages: Iterable[str]) -> dict[str, dict[str, str]]:
    result = {}
    for language in languages:
        text = corpus.text(language)
        result[language] = {"score": text.score_hash, "evaluate": text.evaluate_hash}
    return result


def _origins(corpus: Corpus, languages: Iterable[str]) -> dict[str, dict[str, str | None]]:
    texts = {language: corpus.text(language) for language in languages}
    return {language: {"source": text.origin, "revision": text.revision} for language, text in texts.items()}
