"""Regions that are selected, kept by all that they depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import Fingerprint, identity, refuse_changed, tensor_hashes
from surgeon.checkpoint.sealed import is_sealed, seal
from surgeon.checkpoint.storage import TensorInfo
from surgeon.checkpoint.store import place
from surgeon.region.region import Region
from surgeon.regions.base import Provenance, RegionPlan

REGION_VERSION = 4  # raise it when the same scores and settings would give another region


def provenance_of(checkpoint: Checkpoint, corpus: str, plans: Mapping[str, RegionPlan], jobs: int) -> Provenance:
    """Return what the files of a recipe's regions may say."""

    def hashes(tensors: Sequence[TensorInfo]) -> dict[str, str]:
        names = [info.name for info in tensors]
        found = tensor_hashes(checkpoint, jobs, names)
        return {name: found[name] for name in names}

    return Provenance(checkpoint, corpus, plans, hashes)


def load_region(source: Provenance, plan: RegionPlan, keys: Mapping[str, str], jobs: int) -> Region | None:
    """Return a region that was made before; None if it was not, or its file is not as it was written.

    `keys` name what the scores of each language depend on.
    """
    path = _path(source, plan, keys, jobs)
    return Region.load(path) if is_sealed(path) else None


def keep_region(source: Provenance, plan: RegionPlan, keys: Mapping[str, str], jobs: int, made: Region) -> Region:
    """Write a region that was just made into the cache, with its provenance, and return it from there."""
    path = _path(source, plan, keys, jobs)
    made.metadata.update(plan.kind.provenance(plan, source))
    made.save(path)
    refuse_changed(source.checkpoint)
    seal(path)
    return Region.load(path)


def _path(source: Provenance, plan: RegionPlan, keys: Mapping[str, str], jobs: int) -> Path:
    made = Fingerprint(
        version=REGION_VERSION,
        model=identity(source.checkpoint, jobs),
        settings={
            "provenance": plan.kind.provenance(plan, source),
            "scores": list(keys.values()),
            # which entries make a head, the config says
            "units": {name: [part.group, len(set(part.labels.tolist()))] for name, part in plan.parts.items()},
        },
        tensors=tuple(info.name for info in plan.tensors),
    )
    return place("regions", made.key(), ".region.safetensors")
