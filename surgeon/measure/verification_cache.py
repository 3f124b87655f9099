"""What was measured of a model, kept by all that it depends on: a run with nothing changed measures nothing again.

Each kind of measurement has a file of its own, and so have the continuations (`CONTINUATIONS`): a recipe that asks for
one more has the others measured no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from surgeon.checkpoint.fingerprint import Fingerprint, content_hash, library_versions, tokenizer_hashes
from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.store import path_of, recall, remember
from surgeon.model.precision import Precision
from surgeon.model.results import (
    CONTINUATIONS,
    PERPLEXITY,
    Continuation,
    Figures,
    Measure,
    Quantity,
    Sums,
    Verification,
)
from surgeon.model.workplace import Workplace
from surgeon.operations.edits import Surgery
from surgeon.recipe.schema import VerifySpec

KEPT_VERSION = 5  # raise it when the same settings would give other figures


def kept_path(
    surgery: Surgery,
    donors: Mapping[str, str],
    texts: Mapping[str, str],
    spec: VerifySpec,
    precision: Precision,
    workplace: Workplace,
    kind: str = PERPLEXITY,
) -> Path | None:
    """Name the file of one model's figures of a kind by what they depend on; None if that cannot be known.

    `donors` are hashes of what values are taken from, `texts` those of the evaluation texts by language, in the order
    in which they are measured.
    """
    checkpoint, measured = surgery.checkpoint, _settings(spec, kind)
    if measured is None:
        return None
    settings: dict[str, Any] = {
        "kind": kind,
        "measured": measured,
        "precision": precision,
        "operations": [operation.model_dump(mode="json", by_alias=True) for operation in surgery.operations],
        "regions": {label: surgery.regions[label].digest() for item in surgery.operations for label in item.regions},
        "donors": dict(donors),
        **({"dequantized": True} if checkpoint.written_plain else {}),
    }
    made = Fingerprint(
        version=KEPT_VERSION,
        model=content_hash(checkpoint, workplace.jobs),
        config=checkpoint.config,
        tokenizer=tokenizer_hashes(checkpoint.folder),
        text=sha256(json.dumps(list(texts.items())).encode()),
        settings=settings,
        device=workplace.device.partition(":")[0],
        libraries=library_versions(),
    )
    return path_of("measures", made.key(), ".json")


def _settings(spec: VerifySpec, kind: str) -> dict[str, Any] | None:
    """Return what of the recipe, and of files that it names, the figures of a kind depend on."""
    if kind == CONTINUATIONS:
        return spec.model_dump(mode="json", include={"prompts", "new_tokens"})
    own = next(item for item in spec.measurements if item.kind == kind)
    windows = spec.model_dump(mode="json", include={"tokens", "window", "stride", "batch_size"})
    depends = own.depends()
    if depends is None:
        return None
    return {**windows, "keys": own.model_dump(mode="json"), "version": own.version, "depends": dict(depends)}


def load_kept(path: Path | None, name: str, kind: str = PERPLEXITY) -> Verification | None:
    """Return what was found of a model under a name, or None if nothing was, or the file is damaged."""
    data = recall(path) if path is not None else None
    if data is None:
        return None
    if kind == CONTINUATIONS:
        said = [Continuation(**item) for item in data["continuations"]]
        return Verification(continuations={name: said} if said else {})
    if kind == PERPLEXITY:
        measures = {
            language: Measure(**{**item, "pieces": tuple((nll, count) for nll, count in item["pieces"])})
            for language, item in data["measures"].items()
        }
        return Verification({name: measures})
    groups = {
        group: {quantity: Sums(tuple(totals), tuple(weights)) for quantity, (totals, weights) in by_name.items()}
        for group, by_name in data["groups"].items()
    }
    told = tuple(Quantity(**item) for item in data["quantities"])
    return Verification(figures={name: {kind: Figures(groups, tuple(data["samples"]), told, data["remarks"])}})


def keep(path: Path | None, name: str, found: Verification, kind: str = PERPLEXITY) -> None:
    """Keep what was found of one model; nan and infinities stay what they are."""
    if path is None:
        return
    if kind == CONTINUATIONS:
        remember(path, {"continuations": [asdict(item) for item in found.continuations.get(name, ())]})
    elif kind == PERPLEXITY:
        remember(path, {"measures": {language: asdict(item) for language, item in found.measures[name].items()}})
    else:
        item = found.figures[name][kind]
        groups = {
            group: {quantity: (sums.totals, sums.weights) for quantity, sums in by_name.items()}
            for group, by_name in item.groups.items()
        }
        told = [asdict(quantity) for quantity in item.quantities]
        remember(path, {"groups": groups, "samples": list(item.samples), "quantities": told, "remarks": item.remarks})
