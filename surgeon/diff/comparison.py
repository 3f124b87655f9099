"""`diff` as one function: two checkpoints, two regions, or both."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import refuse_changed
from surgeon.checkpoint.quantized import codec_words, remarks, unread_quantization
from surgeon.checkpoint.sources import is_hub_file, local_file, look_again
from surgeon.checkpoint.storage import TensorInfo, read_header
from surgeon.diff.diff import BYTEWISE, Diff, TensorDiff, compare_checkpoints
from surgeon.diff.entries import chunks
from surgeon.errors import InputError, RegionError, present, shorten
from surgeon.progress import Progress
from surgeon.region.mask import VALUES
from surgeon.region.overlap import Overlap, overlap
from surgeon.region.patch import Patch, Piece, write_patch
from surgeon.region.region import Region, is_region_file


@dataclass(frozen=True)
class Comparison:
    """What was found between two checkpoints, and between two regions, whichever were given.

    `remarks` say what should be known of the checkpoints' files, and where what differs are codes and no values.
    """

    names: tuple[str, ...]
    checkpoints: Diff | None
    overlap: Overlap | None
    patch: Patch | None = None
    remarks: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        """True if a tensor or the config differs; of two regions alone, if an entry does."""
        return self.checkpoints.differs if self.checkpoints is not None else not present(self.overlap).identical

    def __repr__(self) -> str:
        told, diff = [], self.checkpoints
        if diff is not None:
            what = f"{diff.total.changed:,} of {diff.total.entries:,} entries differ" if diff.differs else "equal"
            told.append(f"{diff.before.source.name}, {diff.after.source.name}: {what}")
        if self.overlap is not None:
            told.append(f"{', '.join(self.names)}: Jaccard {self.overlap.total.jaccard:.3g}")
        return f"Comparison({'; '.join(told)})"


def compare(
    before: str | Path | None,
    after: str | Path | None,
    *,
    regions: Sequence[str | Path] = (),
    save: str | Path | None = None,
    save_patch: str | Path | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two checkpoints (inside and outside of the regions, if any), or two region files.

    Args:
        before: a checkpoint, or a region file if `after` is one too; None to compare two `regions` alone.
        after: what `before` is compared with.
        regions: region files; two of them are also compared with each other.
        save: where to write the entries that differ between the checkpoints as a region file.
        save_patch: where to write them as a patch file, with their values in `after`.
        jobs: threads.
        progress: where to show progress.

    Raises:
        InputError: the arguments make no pair.
        SurgeonError: a checkpoint or a region cannot be read, or they do not belong together.
    """
    look_again()
    shown = progress or Progress()
    sides, files = _told_apart(before, after, regions)
    for option, target in (("--save", save), ("--save-patch", save_patch)):
        if target is not None and not sides:
            raise InputError(f"{option} writes what differs between two checkpoints; two regions have no such thing")
    names = _labels(files)
    opened = dict(zip(names, (Region.load(path) for path in files), strict=True))
    both = overlap(*opened.values()) if len(opened) == 2 else None
    if not sides:
        return Comparison(names, None, both)
    left, right = (Checkpoint.open(path) for path in sides)
    said = _remarks(left, right)
    for line in said:
        shown.note(line)
    with shown.task("compare", sum(info.numel for info in left.tensors.values())) as advance:
        difference = compare_checkpoints(left, right, opened, jobs=jobs, advance=advance)
    for side in (left, right):
        refuse_changed(side)
    if save is not None:
        _save(difference, Path(os.path.expanduser(save)))
    patch = None if save_patch is None else _save_patch(difference, Path(os.path.expanduser(save_patch)), shown)
    return Comparison(names, difference, both, patch, said)


def _told_apart(
    before: str | Path | None, after: str | Path | None, regions: Sequence[str | Path]
) -> tuple[list[str | Path], list[Path]]:
    """Return the two checkpoints, or none, and the region files.

    Raises:
        InputError: they make no pair.
    """
    files = [local_file(path) for path in regions]
    sides = [local_file(path) if is_hub_file(path) else path for path in (before, after) if path is not None]
    if len(sides) == 2 and all(is_region_file(path) for path in sides):
        files, sides = [Path(os.path.expanduser(path)) for path in (*sides, *files)], []
    if len(files) > 2 or len(sides) == 1 or (not sides and len(files) != 2):
        raise InputError("diff takes two checkpoints, with at most two --region, or two region files")
    for path, other in zip(sides, reversed(sides), strict=True):
        if is_region_file(path):
            if Path(other).is_file():  # one that is damaged is said to be that
                read_header(Path(other))
            raise InputError(f"{path} is a region file: compare it with another one, or name it after --region")
    return sides, files


def _labels(files: Sequence[Path]) -> tuple[str, ...]:
    """Name regions by their files; by their paths where that would name two alike."""
    short = [path.name.removesuffix(".safetensors").removesuffix(".region") for path in files]
    return tuple(short) if len(set(short)) == len(short) else tuple(str(path) for path in files)


def _save(diff: Diff, path: Path) -> None:
    region = diff.changed_region()
    if not len(region):
        raise RegionError(f"{path}: not written, since no entry differs")
    region.save(path)


def _remarks(*sides: Checkpoint) -> tuple[str, ...]:
    """Say of each checkpoint what its files are not, and where what differs are codes and no values."""
    lines = [line for side in sides for line in remarks(side)]
    for side in sides:
        known = "; ".join(codec_words(side))
        if known:
            lines.append(f"{side.source.name}: the weights are quantized ({known}); their values are compared")
        method = unread_quantization(side)
        if method is not None:
            lines.append(
                f"{side.source.name}: the weights are quantized ({method}); what differs is counted and measured in "
                "their codes, without the scales, and says little of the weights"
            )
    return tuple(dict.fromkeys(lines))


def _save_patch(diff: Diff, path: Path, progress: Progress) -> Patch:
    carried = [tensor for tensor in diff.tensors if tensor.kind == "changed" and not _obstacle(tensor)]
    left_out = {tensor.name: reason for tensor in diff.tensors if (reason := _obstacle(tensor))}
    if not carried:
        if not left_out:
            raise RegionError(f"{path}: not written, since no entry differs")
        why = ", ".join(sorted(set(left_out.values())))
        raise RegionError(
            f"{path}: not written. What differs are tensors that a patch cannot carry ({why}): "
            f"{shorten(list(left_out))}. A patch holds new values for tensors of the same name, shape and dtype"
        )
    before, after = diff.before.source, diff.after.source
    provenance = {
        "model": before.name,
        "model_type": diff.before.config.get("model_type"),
        "revision": before.revision,
        "changed_to": {"model": after.name, "revision": after.revision},
    }
    with progress.task("write the patch", sum(tensor.change.entries for tensor in carried)) as advance:
        return write_patch(path, (_pieces(tensor, advance) for tensor in carried), provenance, left_out)


def _pieces(tensor: TensorDiff, advance: Callable[[int], None]) -> tuple[TensorInfo, Iterator[Piece]]:
    before, after = present(tensor.before), present(tensor.after)

    def read() -> Iterator[Piece]:
        for _, left, right, _ in chunks(before, after):
            yield left, right
            advance(left.size)

    return before, read()


def _obstacle(tensor: TensorDiff) -> str | None:
    """Say why a tensor's difference cannot be a part of a patch; None if it can, or if there is none."""
    if tensor.kind in ("same", "changed"):
        if tensor.change.changed and tensor.note == BYTEWISE:
            return "packed"
        return "reserved name" if tensor.change.changed and tensor.name.startswith(VALUES) else None
    return tensor.kind.replace("_", " and ")
