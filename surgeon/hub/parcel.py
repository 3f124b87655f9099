"""What a push sends: the files of a written variant, checked, and what a reader needs to make them again; or a patch.

README.md        the card, with the command that rebuilds the variant
surgeon.json     what was done to which model, with the hashes of both
recipe.yaml      the recipe with its defaults filled in
manifest.json    versions, and the SHA-256 of every file of the variant
regions/         the regions that the operations act on
figures/         the card's figures
.eval_results/   what was measured on datasets of the Hub, in the form that it shows
the rest         weights, config, tokenizer, freeze/: left out with `weights: false`

A patch, `NAME.patch.safetensors`, is sent with a card of its own (`patch_card`), with the recipe of the run that made
it, and with that run's manifest, of which only the patch is left as an output.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from surgeon import inside
from surgeon.checkpoint.address import is_local, last_part, recipe_without_paths, without_paths
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import damaged
from surgeon.checkpoint.hashing import file_hash, sha256
from surgeon.errors import CheckpointError, InputError, RecipeError
from surgeon.hub.patch_card import patch_card
from surgeon.recipe.plain_yaml import plain, read_yaml
from surgeon.region.patch import Patch, is_patch_file
from surgeon.report.card import REBUILD, RESULTS, SourceCard, base_model
from surgeon.report.published import published_manifest
from surgeon.report.words import size
from surgeon.visible import visible, visible_lines
from surgeon.write.marker import (
    CARD,
    FIGURES,
    MANIFEST,
    MARKER,
    RECIPE,
    REGIONS,
    VARIANTS,
    Marker,
    is_made_anew,
    outputs_of,
    read_own,
    read_own_text,
    run_manifest,
)

# By file of a source, the key under which older versions of transformers wrote the folder that it was loaded from.
_SOURCE_FOLDER = {"config.json": "_name_or_path", "tokenizer_config.json": "name_or_path"}
PATCH = ".patch.safetensors"
_DESCRIBING = (f"{FIGURES}/", f"{RESULTS}/")


@dataclass(frozen=True)
class Item:
    """A file to send: its path in the repository, its content or where that is, its size and SHA-256."""

    path: str
    content: Path | bytes
    size: int
    sha256: str


@dataclass(frozen=True)
class Parcel:
    """Everything that one push sends. `origin` is the Hub id and commit of the model that was operated on.

    `left_behind` are files in the variant's folder that surgeon did not write.
    """

    folder: Path
    items: tuple[Item, ...]
    card: str
    origin: tuple[str, str] | None = None
    left_behind: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.size for item in self.items)


def region_path(label: str) -> str:
    """Return where a region's file stands below an output folder, or in a repository."""
    return f"{REGIONS}/{label}.region.safetensors"


def pack(path: Path, address: str, *, weights: bool = True, jobs: int = 2) -> Parcel:
    """Check a written variant, or a patch, against its manifest and collect what is sent to `address` (`hf://org/name`).

    Raises:
        InputError: this is no variant; without weights nobody could rebuild it; a patch's base is one that others lack.
        CheckpointError: files are missing, are not those that `apply` wrote, or no manifest tells.
    """
    return _pack_patch(path, address) if is_patch_file(path) else _pack_variant(path, address, weights, jobs)


def _pack_variant(folder: Path, address: str, weights: bool, jobs: int) -> Parcel:
    marker, run = Marker.read(folder), run_manifest(folder)
    if not run:
        raise CheckpointError(
            f"{folder}: no {MANIFEST} of the run that wrote it, so nothing tells whether its files are whole; push it "
            "from where `surgeon apply` wrote it, such as out/NAME/variants/VARIANT"
        )
    links = [name for name in run["outputs"] if os.path.lexists(folder / name) and not inside.is_own_file(folder, name)]
    if links:
        raise CheckpointError(f"{folder / links[0]}: a link, and only files of the variant's own folder are published")
    named = {name: digest for name, digest in run["outputs"].items() if not is_made_anew(name)}
    wrong = damaged(folder, named | marker.files, jobs)
    if wrong:
        raise CheckpointError(f"{wrong[0]}; run `surgeon apply` again")
    if weights:
        Checkpoint.open(folder)
    items = [Item(name, folder / name, (folder / name).stat().st_size, digest) for name, digest in named.items()]
    regions = list(_regions(folder, marker))
    complete, origin = len(regions) == len(marker.regions), _origin(marker)
    if not weights:
        _refuse_unless_rebuildable(folder, marker, complete, origin)
        items = [item for item in items if item.path == MARKER or item.path.startswith(_DESCRIBING)]
    card = _card(folder, marker, address, weights, complete and not any(map(is_local, marker.donors)))
    told = _without_paths(marker)
    if origin is None:
        items, told = _without_source_folder(items, told)
    if told != marker:
        items = [text_item(MARKER, told.text()) if item.path == MARKER else item for item in items]
    items += [*regions, _recipe_item(told.recipe)]
    outputs = named | {item.path: item.sha256 for item in items}
    parcel = _parcel(folder, items, {**published_manifest(run), "outputs": dict(sorted(outputs.items()))}, card)
    known = {item.path for item in parcel.items} | named.keys()
    beside = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not inside.is_folder(path))
    return replace(parcel, origin=origin, left_behind=tuple(name for name in beside if name not in known))


def _pack_patch(path: Path, address: str) -> Parcel:
    patch, run = Patch.load(path), path.resolve().parent.parent
    if not path.name.endswith(PATCH):
        raise InputError(f"{path}: name it NAME{PATCH}, so others see what it is")
    manifest = read_own(run / MANIFEST)
    expected = outputs_of(manifest).get(f"{VARIANTS}/{path.name}")
    if expected is None:
        raise CheckpointError(
            f"{path}: no {MANIFEST} of the run that wrote it; push it from where `surgeon apply` wrote it, such as "
            f"out/NAME/{VARIANTS}/VARIANT{PATCH}"
        )
    digest = file_hash(path)
    if digest != expected:
        raise CheckpointError(f"{path}: not the file that was written; run `surgeon apply` again")
    if not inside.is_plain_file(run, RECIPE):
        raise CheckpointError(f"{run / RECIPE}: no plain file there; run `surgeon apply` again")
    text = read_own_text(run / RECIPE, "the recipe of the run")
    try:
        recipe = plain(read_yaml(text, lambda line: f"{run / RECIPE}:{line}")[0])
    except RecipeError as error:
        raise CheckpointError(f"{error}; run `surgeon apply` again") from None
    items = [
        Item(path.name, path, path.stat().st_size, digest),
        _recipe_item(recipe_without_paths(recipe if isinstance(recipe, dict) else {})),
    ]
    told = {**published_manifest(manifest), "outputs": {path.name: digest}}
    return _parcel(path, items, told, patch_card(patch, address))


def _parcel(folder: Path, items: Sequence[Item], manifest: Mapping[str, Any], card: str) -> Parcel:
    """Put manifest and card beside the items."""
    told = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    items = [*items, text_item(MANIFEST, told), text_item(CARD, card)]
    return Parcel(folder, tuple(sorted(items, key=lambda item: item.path)), card)


def _recipe_item(recipe: Mapping[str, Any]) -> Item:
    return text_item(RECIPE, yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))


def _without_paths(marker: Marker) -> Marker:
    """Return the marker without the folders of this machine; rebuilding then takes `--set model=SOURCE`."""
    return marker.model_copy(
        update={
            "model": marker.model.model_copy(update={"source": last_part(marker.model.source)}),
            "operations": without_paths(marker.operations),
            "donors": {last_part(name): digest for name, digest in marker.donors.items()},
            "recipe": recipe_without_paths(marker.recipe),
        }
    )


def _without_source_folder(items: list[Item], marker: Marker) -> tuple[list[Item], Marker]:
    """Leave out of the configs of a local source what older versions of transformers wrote into them: its folder."""
    result = []
    for item in items:
        key = _SOURCE_FOLDER.get(item.path)
        data = read_own(item.content) if key is not None and isinstance(item.content, Path) else {}
        if key is not None and is_local(str(data.get(key, ""))):
            del data[key]
            item = text_item(item.path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
            marker = marker.model_copy(update={"files": {**marker.files, item.path: item.sha256}})
        result.append(item)
    return result, marker


def text_item(path: str, text: str) -> Item:
    """Make an item of a text."""
    data = text.encode("utf-8")
    return Item(path, data, len(data), sha256(data))


def _regions(folder: Path, marker: Marker) -> Iterator[Item]:
    """Yield the region files of a variant that are still there, beside it or in its run's output."""
    for label, expected in marker.regions.items():
        for root in (folder, folder.resolve().parent.parent):
            path = root / region_path(label)
            if inside.is_own_file(root, region_path(label)) and file_hash(path) == expected:
                yield Item(region_path(label), path, path.stat().st_size, expected)
                break


def _origin(marker: Marker) -> tuple[str, str] | None:
    name, revision = base_model(marker.model.source), marker.model.revision
    return (name, revision) if name is not None and revision is not None else None


def _refuse_unless_rebuildable(folder: Path, marker: Marker, regions: bool, origin: tuple[str, str] | None) -> None:
    source = marker.model.source
    if not regions:
        raise InputError(
            f"{folder}: cannot be pushed without weights, as its region files are gone or have changed; "
            "run `surgeon apply` again"
        )
    for donor in marker.donors:
        if base_model(donor) is None and not donor.startswith("builtin:"):
            raise InputError(
                f"{folder}: cannot be pushed without weights: it takes values from {donor}, which others do not have"
            )
    if origin is None and not source.startswith("builtin:"):
        raise InputError(
            f"{folder}: cannot be pushed without weights: it was made from {source}, which others do not have; "
            "push it with its weights, or make it from a model on the Hub"
        )


def _card(folder: Path, marker: Marker, address: str, weights: bool, rebuildable: bool) -> str:
    """Return the card with the command that rebuilds the variant, now that its address is known."""
    if os.path.lexists(folder / CARD) and not inside.is_own_file(folder, CARD):
        raise CheckpointError(f"{folder / CARD}: a link, and only files of the variant's own folder are published")
    card = read_own_text(folder / CARD, "the model card")
    model = "" if _origin(marker) is not None or marker.model.source.startswith("builtin:") else " --set model=SOURCE"
    command = (
        f"`recipe.yaml` is in this repository. To make exactly these weights from the source and the regions here, "
        f"checked by their SHA-256, nothing has to be scored again:\n\n```sh\nsurgeon apply {address}{model}\n```\n"
    )
    card = card.replace(REBUILD, command if rebuildable else "`recipe.yaml` is in this repository.\n")
    if not weights:
        note = f"\n\n**This repository holds no weights**; `surgeon apply {address}` makes them."
        card = re.sub(r"^# .*$", lambda heading: heading[0] + note, card, count=1, flags=re.MULTILINE)
    return card


def parcel_text(parcel: Parcel, address: str) -> str:
    """Say what a push would send: the files with their sizes, and the card."""
    lines = [f"{size(item.size):>8}  {visible(item.path)}" for item in parcel.items]
    lines += [f"{'stays':>8}  {visible(name)} (not written by surgeon)" for name in parcel.left_behind]
    total = f"{size(parcel.size):>8}  in {len(parcel.items)} files, to {address}; nothing was sent"
    lacking = [f"{'note':>8}  {what}" for what in lacking_in(parcel.card)]
    return "\n".join([*lines, total, *lacking, "", "README.md:", "", visible_lines(parcel.card)])


def lacking_in(card: str) -> list[str]:
    """Say what a card lacks that the Hub shows beside a model: its licence, and the model that it was made from."""
    notes = []
    if "license" not in SourceCard.parse(card).fields:
        notes.append("the card names no licence: the source's README.md has none; add `license:` to its front matter")
    if not re.search(r"^base_model:", card.partition("\n---")[0], re.MULTILINE):
        notes.append("the card names no base model, since the source is not on the Hub; made from a Hub id it would")
    return notes


def parcel_data(parcel: Parcel, address: str) -> dict[str, Any]:
    """Return the same as plain data, for `--json`."""
    files = {item.path: {"bytes": item.size, "sha256": item.sha256} for item in parcel.items}
    behind = list(parcel.left_behind)
    return {
        "address": address,
        "bytes": parcel.size,
        "files": files,
        "left_behind": behind,
        "lacking": lacking_in(parcel.card),
        "card": parcel.card,
    }
