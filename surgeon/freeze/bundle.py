"""The freeze bundle: a region file and a manifest in the folder `freeze/` beside the weights.

The manifest says, per tensor, what the frozen entries must hold, so that a loader can refuse another model
and anybody can check a trained checkpoint against it without the base at hand. docs/freeze-format.md has
the format and a loader in twenty lines.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.address import model_address
from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.hub import fetch_snapshot, hub_errors
from surgeon.checkpoint.plain_json import NotPlain, as_object, as_shape, as_size, as_text, read_object
from surgeon.checkpoint.storage import DTYPE_BITS, TensorInfo, map_bytes, read_header, view
from surgeon.errors import CheckpointError, FreezeError, InputError, RegionError
from surgeon.inside import replacing
from surgeon.region.mask import Mask, encode_indices, encode_mask
from surgeon.region.region import Region

FOLDER = "freeze"
MANIFEST = "manifest.json"
REGION = "region.safetensors"
FORMAT = "surgeon-freeze"
FLOATS = ("F64", "F32", "F16", "BF16")
Shape = tuple[int, ...]
FROZEN, TRAINED = "selected entries are frozen", "selected entries train"  # polarity of versions 1 and 2


@dataclass(frozen=True)
class ModelPlace:
    """Where a tensor stands in the model class: from flat index `offset` on in the parameter `name` of that shape."""

    name: str
    shape: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True)
class FrozenTensor:
    """What the manifest says of one tensor.

    `dtype` is the safetensors name; `sha256` hashes the whole tensor, `frozen_sha256` only the frozen entries,
    in ascending flat index. `place` is None if it is not known where the tensor stands in the model class.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    entries: int
    sha256: str
    frozen_sha256: str
    place: ModelPlace | None = None


@dataclass(frozen=True)
class Bundle:
    """A region to freeze and what its entries hold.

    Without a manifest (a bare region) `tensors` is empty, and only names and shapes can be checked. `ties`
    are groups of names that are one parameter; an entry frozen under one of them is frozen under all. `trained` is the
    complement of `region` where the bundle was made to say which entries train, and all others are frozen. `folder` is
    where its files lie.
    """

    region: Region
    tensors: Mapping[str, FrozenTensor]
    ties: tuple[tuple[str, ...], ...] = ()
    base: Mapping[str, Any] | None = None
    source: str = "region"
    trained: Region | None = None
    folder: Path | None = None

    @classmethod
    def load(cls, source: str | Path, revision: str | None = None) -> Bundle:
        """Read a bundle from a checkpoint folder, its `freeze/` folder, `org/name` or `hf://org/name@revision`.

        A single region file is taken as a bundle without a manifest.

        Raises:
            FreezeError: nothing there, or the manifest is damaged or of another version.
            RegionError: the region file is damaged, or is not the one the manifest was made for.
            EnvironmentFailure: the Hub did not answer.
        """
        path = Path(os.path.expanduser(source))
        if path.is_file() and path.name != MANIFEST:
            return cls(Region.load(path), {}, source=str(source))
        folder = _find_folder(str(source), path, revision)
        data = _read_manifest(folder / MANIFEST)
        region = Region.load(folder / str(data["region"]["file"]))
        if sha256((folder / str(data["region"]["file"])).read_bytes()) != data["region"]["sha256"]:
            raise RegionError(f"{folder}: the region file is not the one of the manifest; fetch the bundle again")
        tensors = {name: _frozen_tensor(folder / MANIFEST, name, entry) for name, entry in data["tensors"].items()}
        for name in region:
            if name not in tensors or tensors[name].shape != region.shapes[name]:
                raise FreezeError(f"{folder / MANIFEST}: does not describe tensor '{name}' of its region file")
        trained = region if data["polarity"] == TRAINED else None
        frozen = region if trained is None else ~region
        return cls(frozen, tensors, tuple(map(tuple, data["ties"])), data["base"], str(source), trained, folder)

    def copy_to(self, checkpoint: Path) -> None:
        """Put the bundle beside a checkpoint that goes on from its own; does nothing without a manifest, or if it is
        there.

        The hashes of whole tensors in it stay those of the checkpoint that it was made for.
        """
        target = checkpoint / FOLDER
        if self.folder is None or (
            (target / MANIFEST).exists() and (target / MANIFEST).samefile(self.folder / MANIFEST)
        ):
            return
        target.mkdir(parents=True, exist_ok=True)
        region = str(_read_manifest(self.folder / MANIFEST)["region"]["file"])
        for name in (region, MANIFEST):
            with replacing(target / name) as staged:
                shutil.copyfile(self.folder / name, staged)

    def names(self) -> list[str]:
        """Return the tensors that have frozen entries."""
        return [name for name in self.region if self._entries(name)]

    @property
    def entries(self) -> int:
        """Number of frozen entries."""
        return sum(self._entries(name) for name in self.region)

    def _entries(self, name: str) -> int:
        return self.tensors[name].entries if name in self.tensors else self.region[name].entries


def _find_folder(source: str, path: Path, revision: str | None) -> Path:
    candidates = [path.parent] if path.name == MANIFEST else [path / FOLDER, path]
    for folder in candidates:
        if (folder / MANIFEST).is_file():
            return folder
    address = model_address(source)
    if path.exists() or address is None:
        raise FreezeError(
            f"{source}: no {FOLDER}/{MANIFEST} there; give a checkpoint that surgeon wrote with `freeze:` in its "
            "recipe, a region file, or a Hub id"
        )
    return _download(address.repository, address.revision or revision) / FOLDER


def _download(repository: str, revision: str | None) -> Path:
    where = f"hf://{repository}" + (f"@{revision}" if revision else "")
    try:
        with hub_errors(where):
            folder = fetch_snapshot(repository, revision, [f"{FOLDER}/*"])
    except InputError as error:
        raise FreezeError(f"no such folder here, and {error}") from None
    if not (folder / FOLDER / MANIFEST).is_file():
        raise FreezeError(f"{where}: the repository has no {FOLDER}/{MANIFEST}; it holds no freeze bundle")
    return folder


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest, every part of which is then what it must be but for the tensors' entries."""
    try:
        data = read_object(path)
        kind, version, polarity = data.get("format"), data.get("format_version"), data.get("polarity")
        if kind == FORMAT and (version, polarity) in ((1, FROZEN), (2, TRAINED)):
            region = as_object(data.get("region"), "its region")
            file = as_text(region.get("file"), "the name of the region file")
            if Path(file).name != file or "\0" in file:
                raise NotPlain("the region file lies elsewhere")
            as_text(region.get("sha256"), "the hash of the region file")
            as_object(data.get("tensors"), "its list of tensors")
            _check_base(data.get("base"))
            _check_ties(data.get("ties"))
            return data
    except (OSError, NotPlain) as error:
        raise FreezeError(f"{path}: not a freeze manifest ({error})") from None
    raise FreezeError(
        f"{path}: {str(kind)[:60]} version {str(version)[:20]}, {str(polarity)[:60]!r}; this surgeon reads {FORMAT} "
        f"versions 1 ({FROZEN}) and 2 ({TRAINED}): upgrade surgeon"
    )


def _check_base(base: Any) -> None:
    for key in ("name", "revision"):
        if as_object(base, "its base").get(key) is not None:
            as_text(base[key], f"the base's {key}")


def _check_ties(ties: Any) -> None:
    groups = ties if isinstance(ties, list) else [None]
    if not all(isinstance(group, list) and all(isinstance(name, str) for name in group) for group in groups):
        raise NotPlain("its ties are no lists of tensors' names")


def _frozen_tensor(path: Path, name: str, said: Any) -> FrozenTensor:
    try:
        entry = as_object(said, "its entry")
        shape, in_class, model_shape = as_shape(entry.get("shape")), entry.get("model_name"), entry.get("model_shape")
        place = ModelPlace(
            "" if in_class is None else as_text(in_class, "the name in the model"),
            shape if model_shape is None else as_shape(model_shape, "the shape in the model"),
            as_size(entry.get("model_offset", 0), "the offset in the model"),
        )
        dtype = as_text(entry.get("dtype"), "the dtype")
        if dtype not in DTYPE_BITS:
            raise NotPlain(f"dtype {dtype[:20]!r}, which surgeon does not know")
        return FrozenTensor(
            name,
            shape,
            dtype,
            as_size(entry.get("entries"), "the number of entries"),
            as_text(entry.get("sha256"), "the hash"),
            as_text(entry.get("frozen_sha256"), "the hash of the frozen entries"),
            place if place.name else None,
        )
    except NotPlain as error:
        raise FreezeError(f"{path}: not a freeze manifest: tensor '{name}': {error}") from None


def write_bundle(
    folder: str | Path,
    region: Region,
    *,
    base: Mapping[str, Any],
    ties: Sequence[Sequence[str]] = (),
    places: Mapping[str, ModelPlace] | None = None,
    train_only: bool = False,
    logical: tuple[Mapping[str, TensorInfo], Callable[[str], NDArray[Any]]] | None = None,
) -> Path:
    """Write `folder/freeze/` for the checkpoint whose safetensors files lie in `folder`; returns that folder.

    The hashes are those of the checkpoint as it is on disk now. `base` names the model and revision it was
    made from; `places` says where each tensor stands in the model class, as far as that is known. With `train_only`
    the region is what may train, and every other entry of the checkpoint is frozen. Where weights are quantized,
    `logical` are the tensors that they decode to, and what decodes one: trainers hold these.

    Raises:
        FreezeError: the region selects nothing, or has a tensor that is not in the folder or of another shape.
    """
    folder = Path(folder)
    stored = stored_tensors(folder) if logical is None else logical[0]
    if not any(region[name].entries for name in region):
        raise FreezeError(
            f"{folder}: the region selects no entry, so there is nothing to {'train' if train_only else 'freeze'}"
        )
    selected = _over_all_tensors(region, stored) if train_only else region
    tensors = {}
    for name in selected:
        info = fitting(folder, name, stored.get(name), selected.shapes[name])
        frozen = encode_mask(~selected.mask(name)) if train_only else selected[name]
        if train_only or frozen.entries:
            array = view(map_bytes(info.path), info) if logical is None else logical[1](name)
            tensors[name] = {
                "shape": list(info.shape),
                "dtype": info.dtype,
                "entries": frozen.entries,
                "sha256": sha256(np.ascontiguousarray(array).tobytes()),
                "frozen_sha256": sha256(entries_of(array, frozen).tobytes()),
                **_in_model((places or {}).get(name)),
            }
    kept = Region({name: selected.shapes[name] for name in tensors}, selected.__getitem__, region.metadata)
    target = folder / FOLDER
    kept.save(target / REGION)
    manifest = {
        "format": FORMAT,
        "format_version": 2 if train_only else 1,
        "polarity": TRAINED if train_only else FROZEN,
        "base": dict(base),
        "region": {"file": REGION, "sha256": sha256((target / REGION).read_bytes())},
        "ties": [list(group) for group in ties],
        "tensors": tensors,
    }
    with replacing(target / MANIFEST) as staged:
        staged.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def entries_of(array: NDArray[Any], mask: Mask) -> NDArray[Any]:
    """Return the entries of an array that a mask selects, in ascending flat index."""
    flat = array.reshape(-1)
    return np.asarray(flat[mask.indices()] if mask.encoding == "gaps" else flat[mask.flat()])


def _over_all_tensors(region: Region, stored: Mapping[str, TensorInfo]) -> Region:
    """Return a region that has all floating-point tensors of a checkpoint in scope."""
    nothing = np.empty(0, dtype=np.int64)
    shapes = {name: info.shape for name, info in stored.items() if info.dtype in FLOATS}
    shapes = {**shapes, **{name: region.shapes[name] for name in region if region[name].entries}}
    return Region(
        shapes, lambda name: region[name] if name in region else encode_indices(nothing, shapes[name]), region.metadata
    )


def _in_model(place: ModelPlace | None) -> dict[str, Any]:
    if place is None:
        return {"model_name": None, "model_shape": None, "model_offset": 0}
    return {"model_name": place.name, "model_shape": list(place.shape), "model_offset": place.offset}


def stored_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a checkpoint's safetensors files, or of one file; of all that are there a name's last.

    Raises:
        FreezeError: there is none, or one is damaged.
    """
    return {name: copies[-1] for name, copies in tensors_by_name(folder).items()}


def tensors_by_name(folder: Path) -> dict[str, list[TensorInfo]]:
    """Return all tensors by name in the files of a checkpoint that a loader reads: an index's, or `model.safetensors`.

    Where a folder has neither, all its safetensors files count, and a name may be there more than once.

    Raises:
        FreezeError: there is none, or one is damaged.
    """
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    try:
        if index.is_file() and not single.is_file():
            names = set(as_object(read_object(index).get("weight_map"), "its weight map").values())
            files = [file for file in files if file.name in names] or files
        elif single.is_file():
            files = [single]
        if not files:
            raise FreezeError(f"{folder}: no safetensors file in this folder")
        copies: dict[str, list[TensorInfo]] = {}
        for file in files:
            for name, info in read_header(file).tensors.items():
                copies.setdefault(name, []).append(info)
    except CheckpointError as error:
        raise FreezeError(str(error)) from None
    except (OSError, NotPlain) as error:
        raise FreezeError(f"{index}: not read ({error})") from None
    return copies


def fitting(folder: Path, name: str, info: TensorInfo | None, shape: Shape) -> TensorInfo:
    """Return a stored tensor that must be there and of that shape.

    Raises:
        FreezeError: it is not.
    """
    if info is None:
        raise FreezeError(f"{folder}: has no tensor '{name}', which the region needs")
    if info.shape != shape:
        raise FreezeError(
            f"{folder}: tensor '{name}' has shape {list(info.shape)}, in the region {list(shape)}: "
            "the region belongs to another model"
        )
    return info


def allowed_shapes(pairs: Iterable[tuple[Shape, Shape]]) -> Callable[[Shape], tuple[Shape, ...]]:
    """Say, of tensors with these shapes then and now, which shapes one may have now: its own, or an enlarged one.

    A vocabulary was enlarged if all that have more rows now have the same number of them, and had so then.
    """
    rows = {(then[0], now[0]) for then, now in pairs if then and now[1:] == then[1:] and now[0] > then[0]}
    few, many = rows.pop() if len(rows) == 1 else (-1, -1)
    return lambda shape: (shape, (many, *shape[1:])) if shape[:1] == (few,) else (shape,)
