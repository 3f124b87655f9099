"""Patches in a run: writing a variant as one, and telling donors apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surgeon.checkpoint.fingerprint import identity
from surgeon.checkpoint.hashing import file_hash
from surgeon.operations import Operation, open_donor
from surgeon.operations.edits import touched_tensors
from surgeon.plan.plan import Plan
from surgeon.progress import Progress
from surgeon.region.patch import Patch
from surgeon.region.region import Region
from surgeon.write.execute import Written, write_variant_patch


def donor_hash(name: str, jobs: int) -> str:
    """Return what tells a donor from all others: the SHA-256 of a patch file, or a checkpoint's `identity`."""
    donor = open_donor(name)
    return file_hash(donor.path) if isinstance(donor, Patch) else identity(donor, jobs)


def write_as_patch(plan: Plan, variant: str, regions: Mapping[str, Region], progress: Progress) -> Written:
    """Write what a variant changes as `OUT/variants/NAME.patch.safetensors`; `regions` are those it uses.

    Raises:
        SurgeonError: see `write_variant_patch`.
    """
    checkpoint, operations = plan.checkpoint, plan.recipe.variants[variant].operations
    provenance = {
        "model": checkpoint.source.name,
        "model_type": checkpoint.config.get("model_type"),
        "revision": checkpoint.source.revision,
        "recipe": plan.recipe.name,
        "variant": variant,
        "operations": _plain(operations),
    }
    path = plan.output / "variants" / f"{variant}.patch.safetensors"
    total = sum(checkpoint.tensors[name].nbytes for name in touched_tensors(checkpoint, operations, regions))
    with progress.task(f"write {variant}", total) as advance:
        return write_variant_patch(checkpoint, operations, regions, path, provenance=provenance, advance=advance)


def _plain(operations: Sequence[Operation]) -> list[dict[str, object]]:
    return [operation.model_dump(by_alias=True, exclude_none=True) for operation in operations]
