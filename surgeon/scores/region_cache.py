"""Selected regions, kept by all that they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon.checkpoint.fingerprint import Fingerprint, identity, refuse_changed, tensor_hashes
from surgeon.checkpoint.sealed import is_sealed, seal
from surgeon.checkpoint.sources import cache_folder
from surgeon.plan.plan import Plan
from surgeon.plan.regions import RegionPlan
from surgeon.region.region import Region

REGION_VERSION = 2  # raise it when the same scores and settings would give another region


def load_region(plan: Plan, region: RegionPlan, keys: Mapping[str, str], jobs: int) -> Region | None:
    """Return a region that was selected before; None if it was not, or its file is not as it was written.

    `keys` name what the scores of each language depend on.
    """
    path = _path(plan, region, keys, jobs)
    return Region.load(path) if is_sealed(path) else None


def keep_region(plan: Plan, region: RegionPlan, keys: Mapping[str, str], jobs: int, selected: Region) -> Region:
    """Write a region that was just selected into the cache, with its provenance, and return it from there."""
    path = _path(plan, region, keys, jobs)
    selected.metadata.update(_provenance(plan, region, jobs))
    selected.save(path)
    refuse_changed(plan.checkpoint)
    seal(path)
    return Region.load(path)


def _path(plan: Plan, region: RegionPlan, keys: Mapping[str, str], jobs: int) -> Path:
    made = Fingerprint(
        version=REGION_VERSION,
        model=identity(plan.checkpoint, jobs),
        settings={
            "provenance": _provenance(plan, region, jobs),
            "scores": list(keys.values()),
            # which entries make a head, the config says
            "units": {name: [part.group, len(set(part.labels.tolist()))] for name, part in region.parts.items()},
        },
        tensors=tuple(info.name for info in region.tensors),
    )
    return cache_folder() / "regions" / f"{made.key()[:32]}.region.safetensors"


def _provenance(plan: Plan, region: RegionPlan, jobs: int) -> dict[str, Any]:
    if region.spec.control is not None:
        of = plan.regions[region.spec.control.of]
        return {"control": region.spec.control.model_dump(), "of": _provenance(plan, of, jobs)}
    assert region.select is not None
    hashes = tensor_hashes(plan.checkpoint, jobs, [info.name for info in region.tensors])
    return {
        "model": plan.checkpoint.source.name,
        "model_type": plan.checkpoint.config.get("model_type"),
        "revision": plan.checkpoint.source.revision,
        "select": region.select.model_dump(exclude_none=True),
        "score": None if region.score is None else region.score.model_dump(),
        "corpus": plan.corpus.name,
        "source_sha256": {info.name: hashes[info.name] for info in region.tensors},
    }
