"""What a push sends: the files of a written variant, checked, and what a reader needs to make them again.

README.md        the card, with the command that rebuilds the variant
surgeon.json     what was done to which model, with the hashes of both
recipe.yaml      the recipe with its defaults filled in
manifest.json    versions, and the SHA-256 of every file of the variant
regions/         the regions that the operations act on
figures/         the card's figures
.eval_results/   what was measured on datasets of the Hub, in the form that it shows
the rest         weights, config, tokenizer, freeze/: left out with `weights: false`
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from surgeon import inside
from surgeon.checkpoint.address import is_local, last_part, recipe_without_paths, without_paths
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import damaged
from surgeon.checkpoint.hashing import file_hash, sha256
from surgeon.errors import CheckpointError, InputError
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
    Marker,
    is_made_anew,
    read_own,
    read_own_text,
    run_manifest,
)

# By file of a source, the key under which older versions of transformers wrote the folder that it was loaded from.
_SOURCE_FOLDER = {"config.json": "_name_or_path", "tokenizer_config.json": "name_or_path"}
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
    origin: tuple[str, str] | None
    left_behind: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.size for item in self.items)


def region_path(label: str) -> str:
    """Return where a region's file stands below an output folder, or in a repository."""
    return f"{REGIONS}/{label}.region.safetensors"


def pack(folder: Path, address: str, *, weights: bool = True, jobs: int = 2) -> Parcel:
    """Check a written variant against its manifest and collect what is to be sent to `address` (`hf://org/name`).

    Raises:
        InputError: this is not a variant, or without weights nobody could rebuild it.
        CheckpointError: files are missing, are not those that `apply` wrote, or no manifest tells.
    """
    marker = Marker.read(folder)
    run = run_manifest(folder)
    if not run:
        raise CheckpointError(
            f"{folder}: no {MANIFEST} of the run that wrote it, so nothing tells whether its files are whole; push it "
            "from where `surgeon apply` wrote it, such as out/NAME/variants/VARIANT"
        )
    outputs = dict(run["outputs"])
    links = [name for name in outputs if os.path.lexists(folder / name) and not inside.is_own_file(folder, name)]
    if links:
        raise CheckpointError(f"{folder / links[0]}: a link, and only files of the variant's own folder are published")
    named = {name: digest for name, digest in outputs.items() if not is_made_anew(name)}
    wrong = damaged(folder, named | marker.files, jobs)
    if wrong:
        raise CheckpointError(f"{wrong[0]}; run `surgeon apply` again")
    if weights:
        Checkpoint.open(folder)
    items = [Item(name, folder / name, (folder / name).stat().st_size, digest) for name, digest in named.items()]
    regions = list(_regions(folder, marker))
    rebuildable = len(regions) == len(marker.regions) and not any(map(is_local, marker.donors))
    origin = _origin(marker)
    if not weights:
        _refuse_unless_rebuildable(folder, marker, len(regions) == len(marker.regions), origin)
        items = [item for item in items if item.path == MARKER or item.path.startswith(_DESCRIBING)]
    card = _card(folder, marker, address, weights, rebuildable, origin)
    told = _without_paths(marker)
    if origin is None:
        items, told = _without_source_folder(items, told)
    if told != marker:
        items = [text_item(MARKER, told.text()) if item.path == MARKER else item for item in items]
    recipe = yaml.safe_dump(told.recipe, sort_keys=False, allow_unicode=True)
    items += [*regions, text_item(RECIPE, recipe)]
    outputs = named | {item.path: item.sha256 for item in items}
    manifest = published_manifest(run)
    manifest["outputs"] = dict(sorted(outputs.items()))
    items += [text_item(MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"), text_item(CARD, card)]
    sent = {item.path for item in items}
    there = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not inside.is_folder(path))
    behind = tuple(name for name in there if name not in sent and name not in named)
    return Parcel(folder, tuple(sorted(items, key=lambda item: item.path)), card, origin, behind)


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


def _card(folder: Path, marker: Marker, address: str, weights: bool, rebuildable: bool, origin: Any) -> str:
    """Return the card with the command that rebuilds the variant, now that its address is known."""
    if os.path.lexists(folder / CARD) and not inside.is_own_file(folder, CARD):
        raise CheckpointError(f"{folder / CARD}: a link, and only files of the variant's own folder are published")
    card = read_own_text(folder / CARD, "the model card")
    model = "" if origin is not None or marker.model.source.startswith("builtin:") else " --set model=SOURCE"
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
