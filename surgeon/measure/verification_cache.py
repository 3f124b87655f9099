"""What was measured of a model, kept by all that it depends on: a run with nothing changed measures nothing again.

Each kind of measurement has a file of its own, and so have the continuations (`CONTINUATIONS`): a recipe that asks for
one more has the others measured no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from surgeon.checkpoint.fingerprint import Fingerprint, content_hash, library_versions, tokenizer_hashes
from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.store import path_of, recall, remember
from surgeon.model.arithmetic import Precision
from surgeon.model.results import CONTINUATIONS, PERPLEXITY, Continuation, Figures, Measure, Verification
from surgeon.model.workplace import Workplace
from surgeon.operations.edits import Surgery
from surgeon.recipe.schema import VerifySpec

KEPT_VERSION = 6  # raise it when the same settings would give other figures


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
    settings = {
        "kind": kind,
        "measured": measured,
        "precision": precision,
        "operations": [operation.model_dump(mode="json", by_alias=True) for operation in surgery.operations],
        "regions": {label: surgery.regions[label].digest() for item in surgery.operations for label in item.regions},
        "donors": dict(donors),
        **({"dequantized": True} if checkpoint.written_plain else {}),
    }
    fingerprint = Fingerprint(
        version=KEPT_VERSION,
        model=content_hash(checkpoint, workplace.jobs),
        config=checkpoint.config,
        tokenizer=tokenizer_hashes(checkpoint.folder),
        text=sha256(json.dumps(list(texts.items())).encode()),
        settings=settings,
        device=workplace.device.partition(":")[0],
        libraries=library_versions(),
    )
    return path_of("measures", fingerprint.key(), ".json")


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


@cache
def _form(kind: str) -> TypeAdapter[Any]:
    """Return what turns what is kept of a kind into plain data and back."""
    return TypeAdapter({PERPLEXITY: dict[str, Measure], CONTINUATIONS: list[Continuation]}.get(kind, Figures))


def load_kept(path: Path | None, name: str, kind: str = PERPLEXITY) -> Verification | None:
    """Return what was found of a model under a name, or None if nothing was, or the file is damaged."""
    data = recall(path) if path is not None else None
    if data is None:
        return None
    found = _form(kind).validate_python(data["found"])
    if kind == PERPLEXITY:
        return Verification({name: found})
    if kind == CONTINUATIONS:
        return Verification(continuations={name: found} if found else {})
    return Verification(figures={name: {kind: found}})


def keep(path: Path | None, name: str, verification: Verification, kind: str = PERPLEXITY) -> None:
    """Keep what was found of one model; nan and infinities stay what they are."""
    if path is None:
        return
    if kind == PERPLEXITY:
        found: Any = verification.measures[name]
    elif kind == CONTINUATIONS:
        found = verification.continuations.get(name, [])
    else:
        found = verification.figures[name][kind]
    # A kind from elsewhere may give lists, or whole numbers, which come back as the tuples and floats that are meant.
    remember(path, {"found": _form(kind).dump_python(found, warnings=False)})
