"""Patches in a run: writing a variant as one, and telling donors apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from surgeon.checkpoint.address import last_part, without_paths
from surgeon.checkpoint.fingerprint import identity, refuse_changed, stored_hash
from surgeon.checkpoint.hashing import file_hash
from surgeon.checkpoint.sources import refuse_output_inside
from surgeon.checkpoint.storage import TensorInfo
from surgeon.operations import open_donor
from surgeon.operations.edits import Surgery, check_regions_fit
from surgeon.plan.plan import Plan
from surgeon.progress import Progress
from surgeon.region.patch import Patch, write_patch
from surgeon.region.region import Region
from surgeon.write.shards import poke
from surgeon.write.staging import Written

_PIECE_ENTRIES = 1 << 20  # a few megabytes at a time, whatever the tensor's size


def donor_hash(name: str, jobs: int) -> str:
    """Return what tells a donor from all others: the SHA-256 of a patch file, or a checkpoint's `identity`."""
    donor = open_donor(name)
    return stored_hash(donor.path) if isinstance(donor, Patch) else identity(donor, jobs)


def write_as_patch(plan: Plan, variant: str, regions: Mapping[str, Region], progress: Progress) -> Written:
    """Write what a variant changes as `OUT/variants/NAME.patch.safetensors`; `regions` are those it uses.

    Raises:
        SurgeonError: see `write_variant_patch`.
    """
    checkpoint, operations = plan.checkpoint, plan.recipe.variants[variant].operations
    provenance = {
        "model": last_part(checkpoint.source.name),
        "model_type": checkpoint.config.get("model_type"),
        "revision": checkpoint.source.revision,
        "recipe": plan.recipe.name,
        "variant": variant,
        "operations": without_paths([item.model_dump(by_alias=True, exclude_none=True) for item in operations]),
    }
    path = plan.output / "variants" / f"{variant}.patch.safetensors"
    surgery = Surgery(checkpoint, operations, regions)
    with progress.task(f"write {variant}", sum(checkpoint.tensors[name].nbytes for name in surgery.touched)) as advance:
        return write_variant_patch(surgery, path, provenance, advance)


def write_variant_patch(
    surgery: Surgery, path: Path, provenance: Mapping[str, Any], advance: Callable[[int], None] = lambda count: None
) -> Written:
    """Write only what operations change, as a patch file (see patch.py); reads only the touched tensors.

    `advance` is called with bytes done. Memory: one tensor at most, where the checkpoint is not on this disk.

    Raises:
        InputError: the output lies inside the source or a hub cache.
        CheckpointError: the source changed meanwhile.
        RegionError: a region does not fit the checkpoint, or the operations change nothing.
    """
    checkpoint, acted_on = surgery.checkpoint, []
    refuse_output_inside(path, checkpoint.source.path)
    check_regions_fit(checkpoint, surgery.regions)

    def pieces(info: TensorInfo) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        edit = surgery.edit(info.name)
        acted_on.append(edit.indices.size)
        for start in range(0, info.numel, _PIECE_ENTRIES):
            before = checkpoint.span(info, start, min(start + _PIECE_ENTRIES, info.numel))
            after = before.copy()
            poke(after, start, edit)
            yield before, after
        advance(info.nbytes)

    def unchanged() -> Iterator[tuple[TensorInfo, Iterator[tuple[NDArray[Any], NDArray[Any]]]]]:
        yield from ((info, pieces(info)) for info in infos)
        refuse_changed(checkpoint)  # before the patch gets its name

    infos = [checkpoint.tensors[name] for name in surgery.touched]
    write_patch(path, unchanged(), provenance)
    return Written(path, {path: file_hash(path)}, len(infos), sum(acted_on), reused=False)
