"""What was measured of a model, kept by all that it depends on: a run with nothing changed measures nothing again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import Fingerprint, content_hash, library_versions, tokenizer_hashes
from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.store import place, recall, remember
from surgeon.model.precision import Precision
from surgeon.model.results import Continuation, Measure, Verification
from surgeon.operations import Operation
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region

KEPT_VERSION = 3  # raise it when the same settings would give other figures


def kept_path(
    checkpoint: Checkpoint,
    operations: list[Operation],
    regions: Mapping[str, Region],
    donors: Mapping[str, str],
    texts: Mapping[str, str],
    spec: VerifySpec,
    precision: Precision,
    device: str,
    jobs: int,
) -> Path:
    """Name the file of one model's figures by what they depend on.

    `donors` are hashes of what values are taken from, `texts` those of the evaluation texts by language, in the order
    in which they are measured.
    """
    settings: dict[str, Any] = spec.model_dump(mode="json", exclude={"expect", "languages", "continued_by"})
    settings |= {
        "precision": precision,
        "operations": [operation.model_dump(mode="json", by_alias=True) for operation in operations],
        "regions": {label: regions[label].digest() for item in operations for label in item.regions},
        "donors": dict(donors),
    }
    made = Fingerprint(
        version=KEPT_VERSION,
        model=content_hash(checkpoint, jobs),
        config=checkpoint.config,
        tokenizer=tokenizer_hashes(checkpoint.folder),
        text=sha256(json.dumps(list(texts.items())).encode()),
        settings=settings,
        device=device.partition(":")[0],
        libraries=library_versions(),
    )
    return place("measures", made.key(), ".json")


def load_kept(path: Path, name: str) -> Verification | None:
    """Return what was found of a model under a name, or None if nothing was, or the file is damaged."""
    data = recall(path)
    if data is None:
        return None
    measures = {
        language: Measure(**{**item, "windows": tuple((nll, count) for nll, count in item["windows"])})
        for language, item in data["measures"].items()
    }
    said = [Continuation(**item) for item in data["continuations"]]
    return Verification({name: measures}, {name: said} if said else {})


def keep(path: Path, name: str, found: Verification) -> None:
    """Keep what was found of one model; nan and infinities stay what they are."""
    data = {
        "measures": {language: asdict(measure) for language, measure in found.measures[name].items()},
        "continuations": [asdict(item) for item in found.continuations.get(name, ())],
    }
    remember(path, data)
