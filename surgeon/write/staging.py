"""A variant takes shape in a hidden folder beside its name, which it gets once, when it is complete and flushed.

Staging costs what `cp` costs; the disk is set to work at once, so that flushing is nearly done when a run has measured.
A variant or a staged folder of an earlier run is taken up again if its marker is the wanted one and every file has
its hash.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from surgeon import inside
from surgeon.checkpoint.address import last_part
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.companions import check_companions, companions
from surgeon.checkpoint.fingerprint import content_hash, refuse_changed, remember_file, stored_hash
from surgeon.checkpoint.hashing import Stamp, file_hash, file_stamp, sha256
from surgeon.checkpoint.quantized import codecs_of, plain_start, refuse_quantized, written_bytes
from surgeon.checkpoint.sources import refuse_output_inside
from surgeon.checkpoint.storage import Header, on_disk
from surgeon.errors import EnvironmentFailure, InputError
from surgeon.freeze.bundle import FOLDER as FREEZE_FOLDER
from surgeon.freeze.bundle import write_bundle
from surgeon.inside import flush, naming, replacing
from surgeon.model.workplace import Workplace
from surgeon.operations import Operation
from surgeon.operations.edits import EditCount, Surgery, check_regions_fit
from surgeon.region.region import Region
from surgeon.write.copying import copy_all
from surgeon.write.marker import CARD, FIGURES, MARKER, MarkedModel, Marker
from surgeon.write.shards import Copied


@dataclass(frozen=True)
class Written:
    """A variant on disk, and the SHA-256 of its files; `reused` if an earlier run had finished it."""

    path: Path
    files: Mapping[Path, str]
    tensors: int
    entries: int
    reused: bool

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.files)


@dataclass(frozen=True)
class Staged:
    """A variant whose weights are complete in `folder`; that is its destination already, if `reused`.

    `stamps` are those of the files that were written just now.
    """

    checkpoint: Checkpoint
    folder: Path
    destination: Path
    marker: Marker
    stamps: Mapping[str, Stamp] = field(default_factory=dict)

    @property
    def reused(self) -> bool:
        """True if an earlier run had finished it."""
        return self.folder == self.destination

    @property
    def path(self) -> Path:
        """Where it is, or will be."""
        return self.destination

    @property
    def entries(self) -> int:
        """How many entries the operations acted on."""
        return self.marker.entries

    @property
    def size(self) -> int:
        """Bytes of the files that the marker names."""
        return sum((self.folder / name).stat().st_size for name in self.marker.files)


def staging_folder(destination: Path) -> Path:
    """Return the hidden folder in which a variant is made."""
    return destination.with_name(f".{destination.name}.staging")


def old_folder(destination: Path) -> Path:
    """Return the hidden folder to which an older variant of that name steps aside."""
    return destination.with_name(f".{destination.name}.old")


def write_variant(
    checkpoint: Checkpoint,
    operations: Sequence[Operation],
    regions: Mapping[str, Region],
    destination: str | Path,
    *,
    marker: Marker | None = None,
    card: str | None = None,
    jobs: int = 2,
    advance: Callable[[int], None] = lambda count: None,
) -> Written:
    """Write the checkpoint with the operations done to it as a complete folder `destination`.

    If `destination` already holds an intact variant whose marker matches `marker` its weights are left as they are;
    without a marker they are always written anew. `card` becomes README.md. `advance` is called with bytes done.

    Raises:
        InputError: the output lies inside the source or a hub cache, or is a folder that surgeon did not write.
        CheckpointError: the source changed meanwhile, or a file that variants need is a link out of its folder.
        RegionError: a region does not fit the checkpoint.
        EnvironmentFailure: not enough disk.
    """
    folder, surgery = Path(os.path.expanduser(destination)), Surgery(checkpoint, operations, regions)
    staged = stage_variant(surgery, folder, Workplace("cpu", jobs), marker=marker, advance=advance)
    if card is not None:
        with replacing(staged.folder / CARD) as part:
            part.write_text(card, encoding="utf-8")
    return publish(staged)


def stage_variant(
    surgery: Surgery,
    destination: Path,
    workplace: Workplace,
    *,
    marker: Marker | None = None,
    held: Region | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Staged:
    """Do all of `write_variant` but the last step, `publish`, or find it done; all of a team write.

    `held` is what trainers shall keep, or alone change: it comes along as a freeze bundle. A marker without the hash of
    the source's content gets it here, where the source is read anyway.
    """
    checkpoint, jobs = surgery.checkpoint, workplace.jobs
    refuse_output_inside(destination, checkpoint.source.path)
    refuse_quantized(checkpoint)
    check_companions(checkpoint)
    check_regions_fit(checkpoint, surgery.regions)
    _refuse_foreign(destination)
    earlier = _finished(checkpoint, destination, marker, jobs) if marker is not None else None
    if earlier is not None:
        advance(checkpoint.data_bytes)
        return earlier
    folder = staging_folder(destination)
    inside.new_folder(folder)
    try:
        _require_space(destination, checkpoint)
        copied = copy_all(surgery, folder, workplace, advance)
        marker = _with_content(marker or _plain_marker(surgery, destination.name), checkpoint, jobs)
        if held is not None:
            _write_freeze(checkpoint, held, folder, marker)
        marker = _filled(marker, folder, copied, len(surgery.touched))
        with naming(folder / MARKER), inside.create(folder / MARKER) as file:
            file.write(marker.text().encode("utf-8"))
    except Exception:
        inside.remove_folder(folder)  # half of it is of no use, and may be what fills the disk
        raise
    stamps = {name: item.stamp for name, item in copied.items()}
    return Staged(checkpoint, folder, destination, marker, stamps)


def _filled(marker: Marker, folder: Path, copied: Mapping[str, Copied], tensors: int) -> Marker:
    """Put what came out into the marker; files that were added to the folder are small, and hashed here."""
    files = {name: item.sha256 for name, item in copied.items()}
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        if name not in files and name not in (MARKER, CARD):
            files[name] = file_hash(path)
    counts = [copied[name] for name in sorted(copied)]  # in one order, whichever file was finished first
    return marker.model_copy(
        update={
            "tensors": tensors,
            "entries": sum(item.entries for item in counts),
            "edits": sum((item.edits for item in counts), EditCount()),
            "files": dict(sorted(files.items())),
        }
    )


def _plain_marker(surgery: Surgery, name: str) -> Marker:
    """Return the marker of a variant that was made without a recipe."""
    source = surgery.checkpoint.source
    return Marker(
        variant=name,
        operations=[operation.model_dump(by_alias=True, exclude_none=True) for operation in surgery.operations],
        regions={},
        dtype="plain" if surgery.checkpoint.written_plain else None,
        model=MarkedModel(source=source.name, revision=source.revision, content_sha256=""),
        recipe={},
    )


def _with_content(marker: Marker, checkpoint: Checkpoint, jobs: int) -> Marker:
    if marker.model.content_sha256:
        return marker
    model = marker.model.model_copy(update={"content_sha256": content_hash(checkpoint, jobs)})
    return marker.model_copy(update={"model": model})


def _refuse_foreign(destination: Path) -> None:
    inside.refuse_link(destination)
    if destination.exists() and not inside.is_plain_file(destination, MARKER):
        raise InputError(f"{destination} exists and was not written by surgeon (no {MARKER}); choose another --output")


def _finished(checkpoint: Checkpoint, destination: Path, marker: Marker, jobs: int) -> Staged | None:
    """Return the wanted variant if an earlier run finished or staged it, and all of it is still there."""
    for folder in (destination, staging_folder(destination)):
        if not inside.is_folder(folder) or not inside.is_plain_file(folder, MARKER):
            continue
        try:
            earlier = Marker.read(folder)
        except InputError:  # damaged, so it is made again
            continue
        wanted = _with_content(marker, checkpoint, jobs)
        if earlier.matches(wanted) and earlier.intact(folder, jobs) and _has_form_of(checkpoint, folder, earlier):
            return Staged(checkpoint, folder, destination, earlier.model_copy(update={"recipe": marker.recipe}))
    return None


def _has_form_of(checkpoint: Checkpoint, folder: Path, marker: Marker) -> bool:
    """True if what is beside the tensors is that of the source as it is now: companions, shards, their headers."""
    beside = companions(checkpoint)
    expected = {path.as_posix(): stored_hash(checkpoint.folder / path) for path in beside.files}
    expected |= {name: sha256(content) for name, content in beside.added.items()}
    weights = {header.path.name for header in checkpoint.headers}
    own = {name: digest for name, digest in marker.files.items() if not name.startswith(f"{FREEZE_FOLDER}/")}
    if own.keys() != expected.keys() | weights or any(own[name] != digest for name, digest in expected.items()):
        return False
    return all(_begins_alike(checkpoint, header, folder) for header in checkpoint.headers)


def _begins_alike(checkpoint: Checkpoint, header: Header, folder: Path) -> bool:
    """True if a variant's file begins as the source's does, or with the header of its plain copy."""
    if checkpoint.written_plain:
        start = plain_start(checkpoint, header)
    else:
        with on_disk(header.path).open("rb") as source:
            start = source.read(header.data_start)
    with (folder / header.path.name).open("rb") as file:
        return file.read(len(start)) == start


def _require_space(destination: Path, checkpoint: Checkpoint) -> None:
    free, needed = shutil.disk_usage(destination.parent).free, written_bytes(checkpoint)
    if free < needed:
        raise EnvironmentFailure(
            f"{destination}: {free:,} bytes free, but the variant needs {needed:,}; make room or choose "
            "another --output, and run the same command again: what was finished is kept"
        )


def publish(staged: Staged) -> Written:
    """Flush a staged variant to disk and give it its final name; an older one of that name steps aside until then.

    Raises:
        CheckpointError: the source changed since it was opened; nothing is published.
    """
    for path in sorted(staged.folder.rglob("*")):  # what is on disk already costs nothing
        if inside.is_folder(path) or inside.is_plain_file(path.parent, path.name):
            flush(path)
    flush(staged.folder)
    refuse_changed(staged.checkpoint)
    if not staged.reused:
        _rename(staged.folder, staged.destination)
    destination, hashes = staged.destination, staged.marker.files
    for name, stamp in staged.stamps.items():
        if file_stamp((destination / name).stat()) == stamp:
            remember_file(stamp, hashes[name])
    figures = (path for path in files_below(destination / FIGURES) if not path.name.startswith("."))
    names = {*hashes, CARD, MARKER, *(path.relative_to(destination).as_posix() for path in figures)}
    files = {
        destination / name: hashes.get(name) or file_hash(destination / name)
        for name in sorted(names)
        if inside.is_plain_file(destination, name)
    }
    return Written(destination, files, staged.marker.tensors, staged.marker.entries, staged.reused)


def _rename(folder: Path, destination: Path) -> None:
    old = old_folder(destination)
    inside.remove_folder(old)
    if destination.exists():
        inside.rename(destination, old)
    inside.rename(folder, destination)
    flush(destination.parent)
    inside.remove_folder(old)


def _write_freeze(checkpoint: Checkpoint, region: Region, stage: Path, marker: Marker) -> None:
    """Write `freeze/` beside staged weights."""
    from surgeon.model.model import model_places

    model, decoded = marker.model, None
    if codecs_of(checkpoint) and not checkpoint.written_plain:
        variant = Checkpoint.open(stage)
        decoded = variant.tensors, variant.array
    write_bundle(
        stage,
        region,
        base={"name": last_part(model.source), "revision": model.revision, "content_sha256": model.content_sha256},
        ties=checkpoint.ties,
        places=model_places(checkpoint),
        train_only=marker.train_only is not None,
        logical=decoded,
    )


def files_below(folder: Path) -> tuple[Path, ...]:
    """Return all files of a folder and of the folders in it; links are none."""
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()))
