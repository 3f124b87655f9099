"""A variant from what was published of it: the source model, the regions, and the operations between them.

The weights that come out are compared with the manifest before the variant gets its name.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import content_hash, file_hashes
from surgeon.checkpoint.hashing import file_hash
from surgeon.checkpoint.hub_errors import hub_errors
from surgeon.errors import CheckpointError, InputError
from surgeon.hub.parcel import CARD, MANIFEST, RECIPE, REGIONS, read_marker, region_path
from surgeon.progress import Progress
from surgeon.recipe.schema import VariantSpec
from surgeon.region.region import Region
from surgeon.report.card import base_model
from surgeon.write.execute import (
    MARKER,
    Staged,
    Written,
    copy_file,
    files_below,
    output_lock,
    publish,
    stage_variant,
    write_freeze,
)
from surgeon.write.patches import donor_hash

_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_PUBLISHED = (MARKER, CARD, RECIPE, MANIFEST, f"{REGIONS}/*", "figures/*")


def is_published(name: str) -> bool:
    """True for what `rebuild` takes and a recipe is not: `hf://org/name`, or a folder with a variant's marker."""
    return name.startswith("hf://") or (Path(name).expanduser() / MARKER).is_file()


def rebuild(name: str, output: Path | None, overrides: Sequence[str], jobs: int, progress: Progress) -> Written:
    """Make a published variant's weights again, as `OUTPUT/variants/VARIANT`.

    Args:
        name: `hf://org/name@revision`, or a folder of that kind.
        output: where to write; `out/NAME` if it is None.
        overrides: `model=SOURCE` takes the source model from elsewhere.
        jobs: threads for copying and hashing.
        progress: where to show it.

    Raises:
        InputError: it is not such a variant, or it was made from something that is not here.
        CheckpointError: the source is another model, or the weights that come out are not those of the manifest.
        EnvironmentFailure: the Hub could not be reached, or the disk is full.
    """
    model = _model_override(overrides)
    folder = _fetch(name)
    marker, hashes = read_marker(folder), _weight_hashes(folder, name)
    if not _NAME.fullmatch(str(marker["variant"])):
        raise InputError(f"{name}: {marker['variant']!r} cannot name a folder")
    try:
        spec = VariantSpec.model_validate(
            {"operations": marker["operations"], **{key: marker.get(key) for key in ("freeze", "train_only")}}
        )
    except ValidationError as error:
        raise InputError(f"{name}: {MARKER} holds operations that this surgeon does not know ({error})") from None
    regions = _regions(folder, name, marker)
    checkpoint = _source(name, marker, model, jobs)
    for donor, expected in marker.get("donors", {}).items():
        if donor_hash(donor, jobs) != expected:
            raise CheckpointError(f"{donor}: not the one whose values {name} was made with (its hash is another)")
    out = output if output is not None else Path("out") / name.removeprefix("hf://").rstrip("/").split("/")[-1]
    held = None if spec.held is None else (regions[spec.held], spec.train_only is not None)
    with output_lock(out), progress.task(f"write {marker['variant']}", checkpoint.data_bytes) as advance:
        staged = stage_variant(
            checkpoint,
            spec.operations,
            regions,
            out / "variants" / marker["variant"],
            marker={key: value for key, value in marker.items() if key not in ("tensors", "entries")},
            complete=partial(_complete, folder, checkpoint, held, marker["model"]),
            jobs=jobs,
            advance=advance,
        )
        _check(name, staged, hashes, jobs)
        return staged if isinstance(staged, Written) else publish(staged)


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
        return Path(name).expanduser()
    match = _ADDRESS.fullmatch(name)
    if match is None:
        raise InputError(f"{name}: a Hub address has the form hf://org/name or hf://org/name@revision")
    from huggingface_hub import snapshot_download

    with hub_errors(name):
        found = snapshot_download(match["repo"], revision=match["revision"], allow_patterns=list(_PUBLISHED))
    return Path(found)


def _weight_hashes(folder: Path, name: str) -> dict[str, str]:
    """Return the SHA-256 of each weight file, by the manifest that was published."""
    try:
        outputs = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["outputs"]
        hashes = {path: str(digest) for path, digest in outputs.items() if "/" not in path}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        hashes = {}
    weights = {path: digest for path, digest in hashes.items() if path.endswith((".safetensors", ".index.json"))}
    if not weights:
        raise InputError(f"{name}: has no {MANIFEST} that names weights, so it was not published by `surgeon push`")
    return weights


def _regions(folder: Path, name: str, marker: Mapping[str, Any]) -> dict[str, Region]:
    result = {}
    for label, expected in marker["regions"].items():
        path = folder / region_path(label)
        if not _NAME.fullmatch(label) or not path.is_file():
            raise InputError(f"{name}: the file of region '{label}' is missing, so it cannot be rebuilt")
        if file_hash(path) != expected:
            raise CheckpointError(f"{path}: not the region that the variant was made with (its SHA-256 is another)")
        result[label] = Region.load(path)
    return result


def _source(name: str, marker: Mapping[str, Any], model: str | None, jobs: int) -> Checkpoint:
    """Open the model that was operated on, at its commit, and make sure that it is that one."""
    source, revision = str(marker["model"]["source"]), marker["model"]["revision"]
    base = base_model(source)
    if model is None:
        if base is None and not source.startswith("builtin:") and not Path(source).expanduser().exists():
            raise InputError(
                f"{name}: was made from {source}, which is not here; say where that model is with --set model=SOURCE"
            )
        model = f"hf://{base}@{revision}" if base is not None and revision else source
    checkpoint = Checkpoint.open(model).downloaded()
    if content_hash(checkpoint, jobs) != marker["model"]["content_sha256"]:
        raise CheckpointError(f"{model}: not the model that {name} was made from (the hash of its tensors is another)")
    return checkpoint


def _complete(
    folder: Path, checkpoint: Checkpoint, held: tuple[Region, bool] | None, model: Mapping[str, Any], stage: Path
) -> None:
    """Put beside the staged weights what was published with them."""
    if held is not None:
        write_freeze(checkpoint, held[0], model, stage, train_only=held[1])
    for path in files_below(folder):
        relative = path.relative_to(folder)
        if relative.parts[0] in (CARD, RECIPE, MANIFEST, REGIONS, "figures"):
            (stage / relative).parent.mkdir(parents=True, exist_ok=True)
            copy_file(path, stage / relative)


def _check(name: str, staged: Staged | Written, expected: Mapping[str, str], jobs: int) -> None:
    folder = staged.path if isinstance(staged, Written) else staged.folder
    present = {file: folder / file for file in expected if (folder / file).is_file()}
    found = file_hashes(present.values(), jobs)
    wrong = [file for file, digest in expected.items() if file not in present or found[present[file]] != digest]
    if wrong:
        if isinstance(staged, Staged):
            shutil.rmtree(staged.folder, ignore_errors=True)
        raise CheckpointError(
            f"{name}: {wrong[0]} came out other than its manifest says, so nothing was written; was the source "
            "stored in other shards, or the manifest changed?"
        )
