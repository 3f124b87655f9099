"""`diff` as one function: two checkpoints, two regions, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from surgeon.checkpoint import Checkpoint
from surgeon.diff import Diff, compare_checkpoints
from surgeon.errors import InputError, RegionError
from surgeon.overlap import Overlap, overlap
from surgeon.progress import Progress
from surgeon.region import Region, is_region_file


@dataclass(frozen=True)
class Comparison:
    """What was found between two checkpoints, and between two regions, whichever were given."""

    names: tuple[str, ...]
    checkpoints: Diff | None
    overlap: Overlap | None


def compare(
    before: str | Path | None,
    after: str | Path | None,
    *,
    regions: Sequence[str | Path] = (),
    save: str | Path | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two checkpoints (inside and outside of the regions, if any), or two region files.

    Args:
        before: a checkpoint, or a region file if `after` is one too; None to compare two `regions` alone.
        after: what `before` is compared with.
        regions: region files; two of them are also compared with each other.
        save: where to write the entries that differ between the checkpoints as a region file.
        jobs: threads.
        progress: where to show progress.

    Raises:
        InputError: the arguments make no pair.
        SurgeonError: a checkpoint or a region cannot be read, or they do not belong together.
    """
    files = [Path(path).expanduser() for path in regions]
    sides = [path for path in (before, after) if path is not None]
    if len(sides) == 2 and all(is_region_file(path) for path in sides):
        files, sides = [Path(path).expanduser() for path in (*sides, *files)], []
    if len(files) > 2 or len(sides) == 1 or (not sides and len(files) != 2):
        raise InputError("diff takes two checkpoints, with at most two --region, or two region files")
    for path in sides:
        if is_region_file(path):
            raise InputError(f"{path} is a region file: compare it with another one, or name it after --region")
    if save is not None and not sides:
        raise InputError("--save writes what differs between two checkpoints; two regions have no such thing")
    names = _labels(files)
    opened = dict(zip(names, (Region.load(path) for path in files), strict=True))
    both = overlap(*opened.values()) if len(opened) == 2 else None
    if not sides:
        return Comparison(names, None, both)
    left, right = (Checkpoint.open(path) for path in sides)
    total = sum(info.numel for info in left.tensors.values())
    with (progress or Progress()).task("compare", total) as advance:
        found = compare_checkpoints(left, right, opened, jobs=jobs, advance=advance)
    if save is not None:
        _save(found, Path(save).expanduser())
    return Comparison(names, found, both)


def _labels(files: Sequence[Path]) -> tuple[str, ...]:
    """Name regions by their files; by their paths where that would name two alike."""
    short = [path.name.removesuffix(".safetensors").removesuffix(".region") for path in files]
    return tuple(short) if len(set(short)) == len(short) else tuple(str(path) for path in files)


def _save(found: Diff, path: Path) -> None:
    region = found.changed_region()
    if not len(region):
        raise RegionError(f"{path}: not written, since no entry differs")
    region.save(path)
