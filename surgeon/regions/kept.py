"""Regions that are selected, kept by all that they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from surgeon.checkpoint.fingerprint import Fingerprint, identity, is_sealed, refuse_changed, seal
from surgeon.checkpoint.store import path_of
from surgeon.region.region import Region
from surgeon.regions.base import Provenance, RegionPlan

REGION_VERSION = 4  # raise it when the same scores and settings would give another region


def load_region(source: Provenance, plan: RegionPlan, keys: Mapping[str, str]) -> Region | None:
    """Return a region that was made before; None if it was not, or its file is not as it was written.

    `keys` name what the scores of each language depend on.
    """
    path = _path(source, plan, keys)
    return Region.load(path) if is_sealed(path) else None


def keep_region(source: Provenance, plan: RegionPlan, keys: Mapping[str, str], made: Region) -> Region:
    """Write a region that was just made into the cache, with its provenance, and return it from there."""
    path = _path(source, plan, keys)
    made.metadata.update(plan.kind.provenance(plan, source))
    made.save(path)
    refuse_changed(source.checkpoint)
    seal(path)
    return Region.load(path)


def _path(source: Provenance, plan: RegionPlan, keys: Mapping[str, str]) -> Path:
    made = Fingerprint(
        version=REGION_VERSION,
        model=identity(source.checkpoint, source.jobs),
        settings={
            "provenance": plan.kind.provenance(plan, source),
            "scores": list(keys.values()),
            # which entries make a head, the config says
            "units": {name: [part.group, len(set(part.labels.tolist()))] for name, part in plan.parts.items()},
        },
        tensors=tuple(info.name for info in plan.tensors),
    )
    return path_of("regions", made.key(), ".region.safetensors")
