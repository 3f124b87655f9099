"""Write a variant: copy the shard's bytes, poke the edited entries, flush, rename.

Every byte that no edit touches stays as it is, header included, because it is never interpreted. The variant
is staged in a hidden folder beside its final name, which it gets only when it is complete.
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
from pathlib import Path
from typing import Any

from surgeon.checkpoint import INDEX_NAME, Checkpoint
from surgeon.edits import check_regions_fit, make_edit, touched_tensors
from surgeon.errors import EnvironmentFailure, InputError
from surgeon.freeze.bundle import FOLDER as FREEZE_FOLDER
from surgeon.operations import Operation
from surgeon.region import Region
from surgeon.sources import refuse_output_inside
from surgeon.storage import Header, flush, map_bytes, view

MARKER = "surgeon.json"
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
    complete: Callable[[Path], None] = lambda stage: None,
    jobs: int = 2,
    advance: Callable[[int], None] = lambda count: None,
) -> Written:
    """Write the checkpoint with the operations done to it as a complete folder `destination`.

    `marker` is stored as `surgeon.json`; if `destination` already holds an intact variant with an equal
    marker it is left as it is; without a marker it is always written anew. `card` becomes README.md.
    `complete` may add files to the staged folder once its weights are written. `advance` is called with bytes done.

    Raises:
        InputError: the output lies inside the source or a hub cache, or is a folder that surgeon did not write.
        RegionError: a region does not fit the checkpoint.
        EnvironmentFailure: not enough disk.
    """
    refuse_output_inside(destination, checkpoint.source.path)
    check_regions_fit(checkpoint, regions)
    if destination.exists():
        done = _finished(destination, marker)
        if done is not None:
            advance(checkpoint.data_bytes)
            return done
    destination.parent.mkdir(parents=True, exist_ok=True)
    _require_space(destination.parent, checkpoint)
    stage = destination.with_name(f".{destination.name}.staging")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    copy_companions(checkpoint, stage)
    touched = touched_tensors(checkpoint, operations, regions)

    def job(header: Header) -> int:
        names = [name for name in touched if name in header.tensors]
        entries = write_shard(checkpoint, header, names, stage / header.path.name, operations, regions)
        advance(header.file_size)
        return entries

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        entries = sum(pool.map(job, checkpoint.headers))
    if card is not None:
        (stage / "README.md").write_text(card, encoding="utf-8")
    complete(stage)
    filled = {**(marker or {}), "tensors": len(touched), "entries": entries}
    (stage / MARKER).write_text(json.dumps(filled, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _publish(stage, destination)
    return Written(destination, _files(destination), len(touched), entries, reused=False)


def write_shard(
    checkpoint: Checkpoint,
    header: Header,
    names: Sequence[str],
    target: Path,
    operations: Sequence[Operation],
    regions: Mapping[str, Region],
) -> int:
    """Copy one shard to `target` and poke the edits of the named tensors; returns the number of edited entries."""
    copy_file(header.path, target)
    entries = 0
    if names:
        data = map_bytes(target, "shared")
        for name in names:
            edit = make_edit(checkpoint, name, operations, regions)
            view(data, header.tensors[name]).reshape(-1)[edit.indices] = edit.values
            entries += edit.indices.size
    flush(target)
    return entries


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
        if relative.name == INDEX_NAME or not relative.name.endswith(_OTHER_WEIGHTS):
            result.append(relative)
    return result


def copy_companions(checkpoint: Checkpoint, target: Path) -> None:
    """Copy the companion files; links, as in a hub cache, are followed so that real files arrive."""
    for relative in companions(checkpoint):
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        copy_file(checkpoint.folder / relative, target / relative)


def _require_space(folder: Path, checkpoint: Checkpoint) -> None:
    free = shutil.disk_usage(folder).free
    if free < checkpoint.data_bytes:
        raise EnvironmentFailure(
            f"{folder}: {free / 1e9:.1f} GB free, but the variant needs {checkpoint.data_bytes / 1e9:.1f} GB; "
            "make room or choose another --output, and run the same command again"
        )


def _files(folder: Path) -> tuple[Path, ...]:
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
    return Written(destination, _files(destination), tensors, entries, reused=True)


def _publish(stage: Path, destination: Path) -> None:
    """Give a staged folder its final name; an older variant of that name steps aside until then."""
    for path in _files(stage):
        if path.suffix != ".safetensors":  # shards were flushed by their own jobs
            flush(path)
    flush(stage)
    old = destination.with_name(f".{destination.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if destination.exists():
        os.rename(destination, old)
    os.rename(stage, destination)
    flush(destination.parent)
    shutil.rmtree(old, ignore_errors=True)
