"""Whether a saved checkpoint (`verify_saved`), or a parameter, holds the frozen entries, by the bundle's hashes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.plain_json import NotPlain
from surgeon.checkpoint.storage import NUMPY_DTYPES, TensorInfo, map_bytes, view
from surgeon.checkpoint.ties import stored_copies
from surgeon.checkpoint.torch_files import load_plain, refuse_repeated
from surgeon.errors import FreezeError, shorten
from surgeon.freeze.binding import Bound, bind
from surgeon.freeze.bundle import Bundle, allowed_shapes, entries_of, fitting, tensors_by_name
from surgeon.freeze.layout import TORCH_DTYPES, as_numpy, whole_flat
from surgeon.region.mask import Mask

TORCH_FILES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
_INSIDE = ("state_dict", "model_state_dict", "module", "model")  # where trainers put the weights in their own files
_Read = Callable[[], NDArray[Any]]  # the frozen entries of one tensor, in ascending flat index


def verify_saved(path: str | Path, bundle: Bundle | str | Path) -> int:
    """Check on disk that a saved checkpoint still holds every frozen entry; returns how many were checked.

    `path` is a folder of safetensors files or, where there is none, of files that `torch.save` wrote
    (`pytorch_model.bin`, `.pt`, `.pth`, Lightning's `.ckpt`), or one such file. It may be stored in another dtype
    than the base if that dtype holds the base's values exactly.

    Raises:
        FreezeError: an entry has moved, a tensor is missing or of another shape, or the bundle is a bare region.
    """
    path = Path(path)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    if not bundle.tensors:
        raise FreezeError(f"{bundle.source}: a bare region says nothing of values; use `surgeon diff BASE TRAINED`")
    files = torch_files(path)
    readers = _from_torch(path, files, bundle) if files else _from_safetensors(path, bundle)
    moved = [
        name
        for name in bundle.names()
        if any(
            frozen_hash(read(), bundle.tensors[name].dtype) != bundle.tensors[name].frozen_sha256
            for read in readers[name]
        )
    ]
    if moved:
        raise FreezeError(f"{path}: frozen entries have changed in {shorten(moved)}")
    return bundle.entries


def torch_files(path: Path) -> list[Path]:
    """Return the files of `torch.save` that are the weights; none if there are safetensors files."""
    if path.is_file():
        return [] if path.suffix == ".safetensors" else [path]
    if any(path.glob("*.safetensors")):
        return []
    found = [file for pattern in TORCH_FILES for file in sorted(path.glob(pattern))]
    # The Trainer puts optimizer.pt, scheduler.pt and others beside them.
    return [file for file in found if file.name.startswith("pytorch_model")] or found


def frozen_hash(values: NDArray[Any], dtype: str) -> str | None:
    """Hash frozen values in the base's dtype; None if that dtype cannot hold them, so that they have changed."""
    with np.errstate(all="ignore"):
        cast = values.astype(NUMPY_DTYPES[dtype])
        if cast.astype(values.dtype).tobytes() != values.tobytes():
            return None
    return sha256(cast.tobytes())


def other_values(bundle: Bundle, name: str, place: Bound) -> str | None:
    """Say why the parameter's frozen entries are not those of the bundle; None if they are."""
    expected = bundle.tensors.get(name)
    if expected is None:
        return "was replaced after freeze(), and a bare region has no hashes to compare it by; freeze after that"
    if frozen_hash(_entries_at(place, bundle.region[name]), expected.dtype) == expected.frozen_sha256:
        return None
    stored, loaded = TORCH_DTYPES[expected.dtype], place.parameter.dtype
    if not _holds(loaded, stored):
        return (
            f"stored as {expected.dtype} but loaded as {loaded}, which does not hold all its values, so that "
            f"they cannot be compared: load the model with dtype={stored}, or pass check_values=False to freeze the "
            "rounded values"
        )
    base = (bundle.base or {}).get("name", bundle.source)
    return f"its frozen entries are not those of {base}: the model was made from another base, or they were trained"


def _entries_at(place: Bound, mask: Mask) -> NDArray[Any]:
    """Return the entries of a mask where its tensor stands in a model, in ascending flat index."""
    where = torch.from_numpy(mask.flat() if mask.encoding == "bits" else mask.indices())
    with whole_flat(place.parameter) as flat:
        return as_numpy(flat[place.offset : place.offset + mask.numel][where.to(flat.device)].cpu())


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """True if one dtype holds every value of another: as fine a fraction, and as large and small an exponent."""
    larger, smaller = torch.finfo(wide), torch.finfo(narrow)
    return larger.eps <= smaller.eps and larger.max >= smaller.max and larger.tiny <= smaller.tiny


def _from_safetensors(path: Path, bundle: Bundle) -> dict[str, list[_Read]]:
    """Read every tensor that bears one of a name's aliases, in every file of the checkpoint that has it."""
    stored = tensors_by_name(path)
    known = {name: [alias for alias in stored_copies(bundle.ties, name) if alias in stored] for name in bundle.names()}
    copies = {name: [(alias, info) for alias in found for info in stored[alias]] for name, found in known.items()}
    allowed = allowed_shapes((bundle.tensors[name].shape, info.shape) for name in copies for _, info in copies[name])

    def reader(name: str, alias: str, info: TensorInfo) -> _Read:
        shape = bundle.tensors[name].shape
        fitting(path, alias, info, info.shape if info.shape in allowed(shape) else shape)
        count = math.prod(shape)
        return lambda: entries_of(view(map_bytes(info.path), info).reshape(-1)[:count], bundle.region[name])

    for name, found in known.items():
        if not found:
            fitting(path, name, None, bundle.tensors[name].shape)
    return {name: [reader(name, alias, info) for alias, info in found] for name, found in copies.items()}


def _from_torch(path: Path, files: list[Path], bundle: Bundle) -> dict[str, list[_Read]]:
    """Read files of tensors named as in the model class, with whatever prefix a trainer gave them."""
    tensors: dict[str, Any] = {}
    for file in files:
        tensors |= _state(file)
    chosen, misfits = bind(bundle, tensors)
    if misfits:
        name, reason = next(iter(misfits.items()))
        raise FreezeError(f"{path}: tensor '{name}': {reason.replace('the model', 'the file')}")

    def reader(name: str, place: Bound) -> _Read:
        return lambda: _entries_at(place, bundle.region[name])

    return {name: [reader(name, place) for place in places] for name, places in chosen.items()}


def _state(file: Path) -> Mapping[str, Any]:
    try:
        data = load_plain(file)
    except NotPlain as error:
        raise FreezeError(f"{file}: not read as weights ({error}); save the state_dict alone") from None
    for key in _INSIDE:
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
            break
    named = data if isinstance(data, dict) else {}
    tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
    try:
        for value in tensors.values():
            refuse_repeated(value)
    except NotPlain as error:
        raise FreezeError(f"{file}: {error}") from None
    if not tensors:
        raise FreezeError(f"{file}: holds no tensors by name")
    return tensors
