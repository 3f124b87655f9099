"""A variant from what was published of it: the source model, the regions, and the operations between them.

The weights that come out are compared with the manifest before the variant gets its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from surgeon import inside
from surgeon.checkpoint.address import model_address
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import content_hash
from surgeon.checkpoint.hashing import file_hash
from surgeon.checkpoint.hub import fetch_snapshot, hub_errors
from surgeon.checkpoint.sources import look_again
from surgeon.errors import CheckpointError, InputError
from surgeon.hub.parcel import region_path
from surgeon.inside import replacing
from surgeon.model.workplace import Workplace
from surgeon.operations.edits import Surgery
from surgeon.progress import Progress
from surgeon.recipe.schema import VariantSpec
from surgeon.region.region import Region
from surgeon.report.card import RESULTS, base_model
from surgeon.write.marker import (
    CARD,
    FIGURES,
    MANIFEST,
    MARKER,
    RECIPE,
    REGIONS,
    VARIANTS,
    Marker,
    outputs_of,
    read_own,
)
from surgeon.write.output import output_lock
from surgeon.write.patches import donor_hash
from surgeon.write.shards import copy_small
from surgeon.write.staging import Staged, Written, publish, stage_variant

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_DESCRIBED = (f"{REGIONS}/", f"{FIGURES}/", f"{RESULTS}/")
_SHOWN = re.compile(rf"{FIGURES}/\w[\w.-]*\.(svg|png)|{re.escape(RESULTS)}/\w[\w.-]*\.yaml")
_PUBLISHED = (MARKER, CARD, RECIPE, MANIFEST, *(f"{folder}*" for folder in _DESCRIBED))


def rebuild(
    name: str,
    output: Path | None,
    overrides: Sequence[str],
    jobs: int,
    progress: Progress,
    overwrite: bool = False,
) -> Written:
    """Make a published variant's weights again, as `OUTPUT/variants/VARIANT`.

    Args:
        name: `hf://org/name@revision`, or a folder of that kind.
        output: where to write; `out/NAME` if it is None.
        overrides: `model=SOURCE` takes the source model from elsewhere.
        jobs: threads for copying and hashing.
        progress: where to show it.
        overwrite: write into a folder that holds something else as well.

    Raises:
        InputError: it is not such a variant, or it was made from something that is not here.
        CheckpointError: the source is another model, or the weights that come out are not those of the manifest.
        EnvironmentFailure: the Hub could not be reached, or the disk is full.
    """
    look_again()
    model = _model_override(overrides)
    folder = _fetch(name)
    marker, hashes = Marker.read(folder), _hashes(folder, name)
    if not _NAME.fullmatch(marker.variant):
        raise InputError(f"{name}: {marker.variant!r} cannot name a folder")
    spec, regions = _spec(name, marker), _regions(folder, name, marker)
    if lacking := set(spec.regions) - regions.keys():
        raise InputError(f"{name}: {MARKER} does not name the file of region '{min(lacking)}'")
    checkpoint = _source(name, marker, model, jobs)
    for donor, expected in marker.donors.items():
        if donor_hash(donor, jobs) != expected:
            raise CheckpointError(f"{donor}: not the one whose values {name} was made with (its hash is another)")
    out = output if output is not None else Path("out") / name.removeprefix("hf://").rstrip("/").split("/")[-1]
    held = regions[spec.held] if spec.held is not None else None
    destination = out / VARIANTS / marker.variant
    owner = str(marker.recipe.get("name", marker.variant))
    with output_lock(out, owner, overwrite), progress.task(f"write {marker.variant}", checkpoint.data_bytes) as advance:
        staged = stage_variant(
            Surgery(checkpoint.dequantized() if marker.dtype is not None else checkpoint, spec.operations, regions),
            destination,
            Workplace("cpu", jobs),
            marker=marker,
            held=held,
            advance=advance,
        )
        _check(name, staged, hashes)
        for left_out in () if staged.reused else _copy_described(folder, staged.folder, marker, hashes):
            progress.note(f"{folder / left_out}: was not published with the variant, so it is left out")
        return publish(staged)


def _spec(name: str, marker: Marker) -> VariantSpec:
    """Return what was done to the source, as a recipe says it."""
    try:
        return VariantSpec.model_validate(
            {"operations": marker.operations, "freeze": marker.freeze, "train_only": marker.train_only}
        )
    except ValidationError as error:
        said = error.errors(include_input=False, include_url=False)[0]["msg"]
        raise InputError(f"{name}: {MARKER} holds operations that this surgeon does not know ({said})") from None


def _model_override(overrides: Sequence[str]) -> str | None:
    model = None
    for override in overrides:
        key, _, value = override.partition("=")
        if key.strip() != "model" or not value:
            raise InputError(f"--set {override}: of a published variant only `model=SOURCE` can be set")
        model = value.strip()
    return model


def _fetch(name: str) -> Path:
    """Return a folder with what was published, weights left out."""
    if not name.startswith("hf://"):
        return Path(os.path.expanduser(name))
    match = model_address(name)
    if match is None:
        raise InputError(f"{name}: a Hub address has the form hf://org/name or hf://org/name@revision")
    with hub_errors(name):
        return fetch_snapshot(match.repository, match.revision, _PUBLISHED)


def _hashes(folder: Path, name: str) -> dict[str, str]:
    """Return the SHA-256 of each file that was published, by the manifest."""
    hashes = outputs_of(read_own(folder / MANIFEST))
    if not any(_is_weight(path) for path in hashes):
        raise InputError(f"{name}: has no {MANIFEST} that names weights, so it was not published by `surgeon push`")
    return hashes


def _is_weight(path: str) -> bool:
    return "/" not in path and path.endswith((".safetensors", ".index.json"))


def _regions(folder: Path, name: str, marker: Marker) -> dict[str, Region]:
    result = {}
    for label, expected in marker.regions.items():
        path = folder / region_path(label)
        if not _NAME.fullmatch(label) or not inside.is_own_file(folder, region_path(label)):
            raise InputError(f"{name}: the file of region '{label}' is missing, so it cannot be rebuilt")
        if file_hash(path) != expected:
            raise CheckpointError(f"{path}: not the region that the variant was made with (its SHA-256 is another)")
        result[label] = Region.load(path)
    return result


def _source(name: str, marker: Marker, model: str | None, jobs: int) -> Checkpoint:
    """Open the model that was operated on, at its commit, and make sure that it is that one."""
    source, revision = marker.model.source, marker.model.revision
    base = base_model(source)
    if model is None:
        if base is None and not source.startswith("builtin:") and not Path(os.path.expanduser(source)).exists():
            raise InputError(
                f"{name}: was made from {source}, which is not here; say where that model is with --set model=SOURCE"
            )
        model = f"hf://{base}@{revision}" if base is not None and revision else source
    checkpoint = Checkpoint.open(model).downloaded()
    if content_hash(checkpoint, jobs) != marker.model.content_sha256:
        raise CheckpointError(f"{model}: not the model that {name} was made from (the hash of its tensors is another)")
    return checkpoint


def _check(name: str, staged: Staged, expected: Mapping[str, str]) -> None:
    """Compare the weights that came out with the manifest that was published."""
    files = staged.marker.files
    wrong = [file for file, digest in expected.items() if _is_weight(file) and files.get(file) != digest]
    if wrong:
        if not staged.reused:
            inside.remove_folder(staged.folder)
        raise CheckpointError(
            f"{name}: {wrong[0]} came out other than its manifest says, so nothing was written; was the source "
            "stored in other shards, or the manifest changed?"
        )


def _copy_described(folder: Path, stage: Path, marker: Marker, expected: Mapping[str, str]) -> list[str]:
    """Put beside the staged weights what was published to describe them; returns what is left out.

    A manifest may name any file, and a folder hold links to any. What a push could have sent comes along: plain files
    of those names, with the hash that the manifest says. (The card is its owner's to edit, the manifest names itself
    not.)
    """
    regions = {region_path(label) for label in marker.regions}
    described = [path for path in expected if path == RECIPE or path in regions or _SHOWN.fullmatch(path)]
    others = [path for path in expected if path.startswith(_DESCRIBED) and path not in described]
    left_out = []
    for path in [CARD, MANIFEST, *described, *others]:
        if not os.path.lexists(folder / path):
            continue
        plain = path not in others and inside.is_own_file(folder, path)
        if plain and (path in (CARD, MANIFEST) or file_hash(folder / path) == expected[path]):
            with replacing(stage / path) as part:
                copy_small(folder / path, part)
        else:
            left_out.append(path)
    return left_out
