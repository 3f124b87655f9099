"""A variant takes shape in a hidden folder beside its name, which it gets once, when it is complete and flushed.

Staging costs what `cp` costs; the disk is set to work at once, so that flushing is nearly done when a run has measured.
A variant or a staged folder of an earlier run is taken up again if its marker is the wanted one and every file has
its hash.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from surgeon import inside
from surgeon.checkpoint.address import last_part
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.companions import check_companions, companions
from surgeon.checkpoint.fingerprint import content_hash, file_hashes, refuse_changed, remember_file
from surgeon.checkpoint.hashing import Stamp, file_hash, file_stamp, sha256
from surgeon.checkpoint.quantized import codecs_of, plain_bytes, plain_start, refuse_quantized, tensors_of
from surgeon.checkpoint.sources import refuse_output_inside
from surgeon.checkpoint.storage import Header, TensorInfo, on_disk
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

Completion = Callable[[Path, Marker], None]


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

    `flushing` are the files on their way to disk, `stamps` those of the files that were written just now.
    """

    checkpoint: Checkpoint
    folder: Path
    destination: Path
    marker: Marker
    stamps: Mapping[str, Stamp] = field(default_factory=dict)
    flushing: tuple[Future[None], ...] = ()

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
    folder = Path(os.path.expanduser(destination))
    place = Workplace("cpu", jobs)
    staged = stage_variant(Surgery(checkpoint, operations, regions), folder, place, marker=marker, advance=advance)
    if card is not None:
        with replacing(staged.folder / CARD) as part:
            part.write_text(card, encoding="utf-8")
    return publish(staged)


def stage_variant(
    surgery: Surgery,
    destination: Path,
    place: Workplace,
    *,
    marker: Marker | None = None,
    complete: Completion = lambda folder, marker: None,
    advance: Callable[[int], None] = lambda count: None,
) -> Staged:
    """Do all of `write_variant` but the last step, `publish`, or find it done; all of a team write.

    `complete` may add files to the staged folder once its weights are written; they become part of the marker. A
    marker without the hash of the source's content gets it here, where the source is read anyway.
    """
    checkpoint, jobs = surgery.checkpoint, place.jobs
    refuse_output_inside(destination, checkpoint.source.path)
    refuse_quantized(checkpoint)
    check_companions(checkpoint)
    check_regions_fit(checkpoint, surgery.regions)
    _refuse_foreign(destination)
    found = _finished(checkpoint, destination, marker, jobs) if marker is not None else None
    if found is not None:
        advance(checkpoint.data_bytes)
        return found
    folder = staging_folder(destination)
    inside.new_folder(folder)
    try:
        _require_space(destination, checkpoint)
        copied, flushing = copy_all(surgery, folder, place, advance)
        marker = _with_content(marker or _plain_marker(surgery, destination.name), checkpoint, jobs)
        complete(folder, marker)
        marker = _filled(marker, folder, copied, len(surgery.touched))
        with naming(folder / MARKER), inside.create(folder / MARKER) as file:
            file.write(marker.text().encode("utf-8"))
    except Exception:
        inside.remove_folder(folder)  # half of it is of no use, and may be what fills the disk
        raise
    stamps = {name: item.stamp for name, item in copied.items()}
    return Staged(checkpoint, folder, destination, marker, stamps, flushing)


def _filled(marker: Marker, folder: Path, copied: Mapping[str, Copied], tensors: int) -> Marker:
    """Put what came out into the marker; files that were added to the folder are small, and hashed here."""
    files = {name: item.sha256 for name, item in copied.items()}
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        if name not in files and name not in (MARKER, CARD):
            files[name] = file_hash(path)
    counts = [copied[name] for name in sorted(copied)]  # in one order, whichever file was finished first
    found = {
        "tensors": tensors,
        "entries": sum(item.entries for item in counts),
        "edits": sum((item.edits for item in counts), EditCount()),
        "files": dict(sorted(files.items())),
    }
    return marker.model_copy(update=found)


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
            found = Marker.read(folder)
        except InputError:  # damaged, so it is made again
            continue
        wanted = _with_content(marker, checkpoint, jobs)
        if found.matches(wanted) and found.intact(folder, jobs) and _has_form_of(checkpoint, folder, found, jobs):
            return Staged(checkpoint, folder, destination, found.model_copy(update={"recipe": marker.recipe}))
    return None


def _has_form_of(checkpoint: Checkpoint, folder: Path, marker: Marker, jobs: int) -> bool:
    """True if what is beside the tensors is that of the source as it is now: companions, shards, their headers."""
    wanted = companions(checkpoint)
    beside = {path.as_posix(): checkpoint.folder / path for path in wanted.kept}
    hashes = file_hashes(beside.values(), jobs)
    made = {name: sha256(content) for name, content in wanted.made.items()}
    sizes = {header.path.name: header.data_start for header in checkpoint.headers}
    others = {name: digest for name, digest in marker.files.items() if name not in sizes}
    if {name: digest for name, digest in others.items() if not name.startswith(f"{FREEZE_FOLDER}/")} != {
        **{name: hashes[path] for name, path in beside.items()},
        **made,
    }:
        return False
    return len(others) + len(sizes) == len(marker.files) and all(
        _start(folder / header.path.name, len(start)) == start
        for header, start in ((header, _start_of(checkpoint, header)) for header in checkpoint.headers)
    )


def _start_of(checkpoint: Checkpoint, header: Header) -> bytes:
    """Return how a variant's file begins: as the source's, or with the header of its plain copy."""
    if checkpoint.written_plain:
        return plain_start(header, tensors_of(checkpoint, header))
    return _start(on_disk(header.path), header.data_start)


def _start(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _require_space(destination: Path, checkpoint: Checkpoint) -> None:
    free = shutil.disk_usage(destination.parent).free
    needed = plain_bytes(checkpoint) if checkpoint.written_plain else checkpoint.data_bytes
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
    for future in staged.flushing:
        future.result()
    for path in sorted(staged.folder.rglob("*")):  # what is on disk already costs nothing
        if inside.is_folder(path) or inside.is_plain_file(path.parent, path.name):
            flush(path)
    flush(staged.folder)
    refuse_changed(staged.checkpoint)
    if not staged.reused:
        _rename(staged.folder, staged.destination)
    place = staged.destination
    for name, stamp in staged.stamps.items():
        if file_stamp((place / name).stat()) == stamp:
            remember_file(stamp, staged.marker.files[name])
    files = {path: staged.marker.files.get(path.relative_to(place).as_posix()) for path in _published(staged)}
    hashes = {path: digest if digest is not None else file_hash(path) for path, digest in files.items()}
    return Written(place, hashes, staged.marker.tensors, staged.marker.entries, staged.reused)


def _published(staged: Staged) -> Iterator[Path]:
    """Yield the files of a published variant that are surgeon's: those of its marker, its card and its figures."""
    figures = (path for path in files_below(staged.destination / FIGURES) if not path.name.startswith("."))
    own = [CARD, MARKER, *(path.relative_to(staged.destination).as_posix() for path in figures)]
    for name in sorted({*staged.marker.files, *own}):
        if inside.is_plain_file(staged.destination, name):
            yield staged.destination / name


def _rename(folder: Path, destination: Path) -> None:
    old = old_folder(destination)
    inside.remove_folder(old)
    if destination.exists():
        inside.rename(destination, old)
    inside.rename(folder, destination)
    flush(destination.parent)
    inside.remove_folder(old)


def write_freeze(checkpoint: Checkpoint, region: Region | None, stage: Path, marker: Marker) -> None:
    """Write `freeze/` beside staged weights, if there is a region that trainers shall keep, or alone change."""
    if region is None:
        return
    from surgeon.model.model import model_places

    model = marker.model
    base = {"name": last_part(model.source), "revision": model.revision, "content_sha256": model.content_sha256}
    write_bundle(
        stage,
        region,
        base=base,
        ties=checkpoint.ties,
        places=model_places(checkpoint),
        train_only=marker.train_only is not None,
        logical=_decoded(stage) if codecs_of(checkpoint) and not checkpoint.written_plain else None,
    )


def _decoded(folder: Path) -> tuple[Mapping[str, TensorInfo], Callable[[str], NDArray[Any]]]:
    """Return the tensors that a quantized variant decodes to, and what decodes one."""
    variant = Checkpoint.open(folder)
    return variant.tensors, variant.array


def files_below(folder: Path) -> tuple[Path, ...]:
    """Return all files of a folder and of the folders in it; links are none."""
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()))
