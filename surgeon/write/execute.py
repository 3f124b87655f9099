"""Write a variant: copy the shard's bytes, poke the edited entries on the way, flush, rename.

Every byte that no edit touches stays as it is, header included, because it is never interpreted. The variant
is staged in a hidden folder beside its final name, which it gets only when it is complete and flushed. Staging
costs what `cp` costs; flushing costs what the disk takes, so a run that has a verification to do does it meanwhile.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.checkpoint import INDEX_NAME, Checkpoint
from surgeon.checkpoint.quantized import refuse_quantized
from surgeon.checkpoint.sources import refuse_output_inside
from surgeon.checkpoint.storage import Header, TensorInfo, flush, on_disk
from surgeon.errors import CheckpointError, EnvironmentFailure, InputError
from surgeon.freeze.bundle import FOLDER as FREEZE_FOLDER
from surgeon.freeze.bundle import write_bundle
from surgeon.operations import Operation
from surgeon.operations.edits import Edit, check_regions_fit, make_edit, touched_tensors
from surgeon.region.patch import write_patch
from surgeon.region.region import Region

MARKER = "surgeon.json"
_PIECE_ENTRIES = 1 << 20
# What surgeon adds to a variant beside its marker and card, at once or when it is pushed.
_OWN = ("figures", "regions", "recipe.yaml", "manifest.json")
_BUFFER_BYTES = 1 << 18  # stays in the processor's cache between reading, poking and writing
# Weights in other formats would still hold what was cut; they are left behind, as are hidden files.
_OTHER_WEIGHTS = (
    ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".onnx_data", ".h5", ".msgpack", ".tflite",
    ".safetensors", ".npz", ".index.json",
)  # fmt: skip
# Errors by which the kernel says that it cannot copy between these two files itself.
_NOT_SUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


@dataclass(frozen=True)
class Written:
    """A variant on disk; `reused` if an earlier run had finished it."""

    path: Path
    files: tuple[Path, ...]
    tensors: int
    entries: int
    reused: bool


@dataclass(frozen=True)
class Staged:
    """A variant whose files are complete in a hidden folder, but perhaps not yet on the disk's platters."""

    folder: Path
    destination: Path
    tensors: int
    entries: int


@contextmanager
def output_lock(output: Path) -> Iterator[None]:
    """Hold the output folder for one process at a time.

    Raises:
        EnvironmentFailure: another process is writing there.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / ".surgeon.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # no advisory locks on this platform
        except OSError:
            raise EnvironmentFailure(
                f"{output}: another surgeon is writing here; wait for it or choose another --output"
            ) from None
        yield
    finally:
        os.close(descriptor)


def write_variant(
    checkpoint: Checkpoint,
    operations: Sequence[Operation],
    regions: Mapping[str, Region],
    destination: Path,
    *,
    marker: Mapping[str, Any] | None = None,
    card: str | None = None,
    jobs: int = 2,
    advance: Callable[[int], None] = lambda count: None,
) -> Written:
    """Write the checkpoint with the operations done to it as a complete folder `destination`.

    `marker` is stored as `surgeon.json`; if `destination` already holds an intact variant with an equal
    marker it is left as it is; without a marker it is always written anew. `card` becomes README.md.
    `advance` is called with bytes done.

    Raises:
        InputError: the output lies inside the source or a hub cache, or is a folder that surgeon did not write.
        RegionError: a region does not fit the checkpoint.
        EnvironmentFailure: not enough disk.
    """
    staged = stage_variant(
        checkpoint, operations, regions, destination, marker=marker, card=card, jobs=jobs, advance=advance
    )
    return staged if isinstance(staged, Written) else publish(staged)


def stage_variant(
    checkpoint: Checkpoint,
    operations: Sequence[Operation],
    regions: Mapping[str, Region],
    destination: Path,
    *,
    marker: Mapping[str, Any] | None = None,
    card: str | None = None,
    complete: Callable[[Path], None] = lambda folder: None,
    jobs: int = 2,
    advance: Callable[[int], None] = lambda count: None,
) -> Staged | Written:
    """Do all of `write_variant` but the last step, `publish`; a variant that is already there is returned as such.

    `complete` may add files to the staged folder once its weights are written.
    """
    refuse_output_inside(destination, checkpoint.source.path)
    refuse_quantized(checkpoint)
    check_regions_fit(checkpoint, regions)
    if destination.exists():
        done = _finished(destination, marker)
        if done is not None:
            advance(checkpoint.data_bytes)
            return done
    destination.parent.mkdir(parents=True, exist_ok=True)
    _require_space(destination.parent, checkpoint)
    folder = destination.with_name(f".{destination.name}.staging")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    copy_companions(checkpoint, folder)
    touched = touched_tensors(checkpoint, operations, regions)

    def job(header: Header) -> int:
        names = [name for name in touched if name in header.tensors]
        entries = write_shard(checkpoint, header, names, folder / header.path.name, operations, regions)
        advance(header.file_size)
        return entries

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        entries = sum(pool.map(job, checkpoint.headers))
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    complete(folder)
    filled = {**(marker or {}), "tensors": len(touched), "entries": entries}
    (folder / MARKER).write_text(json.dumps(filled, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Staged(folder, destination, len(touched), entries)


def publish(staged: Staged) -> Written:
    """Flush a staged variant to disk and give it its final name; an older one of that name steps aside until then."""
    for path in files_below(staged.folder):
        flush(path)
    flush(staged.folder)
    old = staged.destination.with_name(f".{staged.destination.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if staged.destination.exists():
        os.rename(staged.destination, old)
    os.rename(staged.folder, staged.destination)
    flush(staged.destination.parent)
    shutil.rmtree(old, ignore_errors=True)
    return Written(staged.destination, files_below(staged.destination), staged.tensors, staged.entries, reused=False)


def write_variant_patch(
    checkpoint: Checkpoint,
    operations: Sequence[Operation],
    regions: Mapping[str, Region],
    path: Path,
    *,
    provenance: Mapping[str, Any],
    advance: Callable[[int], None] = lambda count: None,
) -> Written:
    """Write only what the operations change, as a patch file (see patch.py); reads only the touched tensors.

    `advance` is called with bytes done. Memory: one tensor at most, where the checkpoint is not on this disk.

    Raises:
        InputError: the output lies inside the source or a hub cache.
        RegionError: a region does not fit the checkpoint, or the operations change nothing.
    """
    refuse_output_inside(path, checkpoint.source.path)
    check_regions_fit(checkpoint, regions)
    touched = touched_tensors(checkpoint, operations, regions)
    acted_on = []

    def pieces(info: TensorInfo) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        edit = make_edit(checkpoint, info.name, operations, regions)
        acted_on.append(edit.indices.size)
        source = checkpoint.array(info.name).reshape(-1)
        for start in range(0, source.size, _PIECE_ENTRIES):
            before = np.array(source[start : start + _PIECE_ENTRIES])
            after = before.copy()
            low, high = np.searchsorted(edit.indices, (start, start + before.size))
            after[edit.indices[low:high] - start] = edit.values[low:high]
            yield before, after
        advance(info.nbytes)

    infos = [checkpoint.tensors[name] for name in touched]
    write_patch(path, ((info, pieces(info)) for info in infos), provenance)
    return Written(path, (path,), len(touched), sum(acted_on), reused=False)


def write_shard(
    checkpoint: Checkpoint,
    header: Header,
    names: Sequence[str],
    target: Path,
    operations: Sequence[Operation],
    regions: Mapping[str, Region],
) -> int:
    """Copy one shard to `target` with the edits of the named tensors; returns the number of edited entries.

    The bytes stream through one small buffer, where the edits are poked into them on the way. Memory: the buffer,
    and the indices and values of one tensor's edit.
    """
    if not names:
        copy_file(on_disk(header.path), target)
        return 0
    entries, position = 0, 0
    with on_disk(header.path).open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        buffer = np.empty(_BUFFER_BYTES, dtype=np.uint8)
        for info in sorted((header.tensors[name] for name in names), key=lambda info: info.offset):
            _stream(reader, writer, info.offset - position, buffer)
            edit = make_edit(checkpoint, info.name, operations, regions)
            _stream(reader, writer, info.nbytes, buffer, edit)
            entries += edit.indices.size
            position = info.offset + info.nbytes
        _stream(reader, writer, header.file_size - position, buffer)
    return entries


def _stream(reader: FileIO, writer: FileIO, count: int, buffer: NDArray[np.uint8], edit: Edit | None = None) -> None:
    """Copy `count` bytes; with an edit, they are one tensor's, and its entries get their new values."""
    width = edit.values.itemsize if edit is not None else 1
    step = buffer.size - buffer.size % width
    bounds = None if edit is None else np.searchsorted(edit.indices, np.arange(0, count + step, step) // width)
    for number, start in enumerate(range(0, count, step)):
        chunk = buffer[: min(step, count - start)]
        _read_fully(reader, chunk)
        if edit is not None and bounds is not None:
            chosen = slice(bounds[number], bounds[number + 1])
            chunk.view(edit.values.dtype)[edit.indices[chosen] - start // width] = edit.values[chosen]
        _write_fully(writer, chunk)


def _read_fully(reader: FileIO, chunk: NDArray[np.uint8]) -> None:
    done = 0
    while done < chunk.size:
        count = reader.readinto(chunk[done:].data)
        if not count:
            raise CheckpointError(f"{reader.name!s}: became shorter while it was read; is something writing to it?")
        done += count


def _write_fully(writer: FileIO, chunk: NDArray[np.uint8]) -> None:
    done = 0
    while done < chunk.size:
        done += writer.write(chunk[done:].data) or 0


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes inside the kernel where it can; file systems with reflinks share the blocks."""
    with source.open("rb") as reader, target.open("wb") as writer:
        if hasattr(os, "copy_file_range"):
            try:
                while os.copy_file_range(reader.fileno(), writer.fileno(), 1 << 30):
                    pass
                return
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
                reader.seek(writer.tell())
        shutil.copyfileobj(reader, writer, 1 << 22)


def companions(checkpoint: Checkpoint) -> list[Path]:
    """Return the files that make the weights a usable model: config, tokenizer, templates, code, licence."""
    root = checkpoint.folder
    if checkpoint.source.path.is_file():
        return []
    result = []
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or not path.is_file() or relative.name in (MARKER, "README.md"):
            continue
        if relative.parts[0] == FREEZE_FOLDER:  # it speaks of the source's weights
            continue
        if relative.parts[0] in _OWN and (root / MARKER).is_file():  # so do these, if the source is a variant itself
            continue
        if relative.name == INDEX_NAME or not relative.name.endswith(_OTHER_WEIGHTS):
            result.append(relative)
    return result


def copy_companions(checkpoint: Checkpoint, target: Path) -> None:
    """Copy the companion files; links, as in a hub cache, are followed so that real files arrive."""
    for relative in companions(checkpoint):
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        copy_file(checkpoint.folder / relative, target / relative)


def write_freeze(
    checkpoint: Checkpoint, region: Region, model: Mapping[str, Any], stage: Path, *, train_only: bool
) -> None:
    """Write `freeze/` beside staged weights; `model` is the source as the marker has it."""
    from surgeon.model.model import model_places

    base = {"name": model["source"], "revision": model["revision"], "content_sha256": model["content_sha256"]}
    places = model_places(checkpoint)
    write_bundle(stage, region, base=base, ties=checkpoint.ties, places=places, train_only=train_only)


def _require_space(folder: Path, checkpoint: Checkpoint) -> None:
    free = shutil.disk_usage(folder).free
    if free < checkpoint.data_bytes:
        raise EnvironmentFailure(
            f"{folder}: {free / 1e9:.1f} GB free, but the variant needs {checkpoint.data_bytes / 1e9:.1f} GB; "
            "make room or choose another --output, and run the same command again"
        )


def files_below(folder: Path) -> tuple[Path, ...]:
    """Return all files of a folder and of the folders in it."""
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file()))


def _finished(destination: Path, marker: Mapping[str, Any] | None) -> Written | None:
    """Return the variant if it is the wanted one; None if it is an older one of ours, to be replaced."""
    try:
        found = json.loads((destination / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"{destination} exists and was not written by surgeon (no {MARKER}); choose another --output"
        ) from None
    entries, tensors = found.pop("entries", 0), found.pop("tensors", 0)
    if marker is None or found != json.loads(json.dumps(marker)):
        return None
    Checkpoint.open(destination)
    return Written(destination, files_below(destination), tensors, entries, reused=True)
