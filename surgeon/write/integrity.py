"""What is on disk held against what was written down of it: a variant's marker, and the manifest of its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon import inside
from surgeon.checkpoint.fingerprint import damaged
from surgeon.checkpoint.plain_json import NotPlain
from surgeon.checkpoint.plain_json import read_object as read_json_object
from surgeon.errors import CheckpointError
from surgeon.write.marker import MARKER, Marker

_LONGEST_TEXT = 1 << 26  # bytes; pages of hundreds of languages have some ten megabytes
MANIFEST, RECIPE = "manifest.json", "recipe.yaml"
VARIANTS, REGIONS = "variants", "regions"
CARD, FIGURES, SAMPLES = "README.md", "figures", "samples"


def check_written(folder: Path, jobs: int) -> int:
    """Check every file that a variant's marker, or the manifest of an output folder, names; returns their number.

    Zero for a folder that surgeon did not write. Of a variant the card and its figures, which do not travel with the
    weights everywhere, are not compared; the card is its owner's to edit in any case.

    Raises:
        CheckpointError: files are missing, or are not those that were written.
        InputError: the marker is damaged.
    """
    if (folder / MARKER).is_file():
        named = run_manifest(folder).get("outputs", {})
        shown = (f"{FIGURES}/", ".eval_results/")
        named = {k: v for k, v in named.items() if not (is_made_anew(k) or k.startswith(shown))}
        expected = named | Marker.read(folder).files
    else:
        named = outputs_of(read_object(folder / MANIFEST))
        expected = {k: v for k, v in named.items() if not (k.startswith(f"{VARIANTS}/") and k.endswith(f"/{CARD}"))}
    wrong = damaged(folder, expected, jobs)
    if wrong:
        more = f", and {len(wrong) - 1} more files" if len(wrong) > 1 else ""
        raise CheckpointError(f"{wrong[0]}{more}; run `surgeon apply` again")
    return len(expected)


def is_output(folder: Path) -> bool:
    """True for a folder that a run of surgeon wrote as its output."""
    return not (folder / MARKER).exists() and bool(outputs_of(read_object(folder / MANIFEST)))


def is_made_anew(name: str) -> bool:
    """True for files of a variant that a push makes anew, or that are the user's to edit, as the card is."""
    return name in (CARD, RECIPE, MANIFEST) or name.startswith(f"{REGIONS}/")


def read_own_text(path: Path, what: str) -> str:
    """Read a file of text that surgeon wrote: a card, a recipe, a page; `what` says which.

    Raises:
        CheckpointError: it is missing, not UTF-8, or longer than surgeon writes any.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_TEXT + 1)
        if len(data) > _LONGEST_TEXT:
            raise CheckpointError(f"{path}: {what} is longer than {_LONGEST_TEXT:,} bytes; run `surgeon apply` again")
        return data.decode("utf-8")
    except OSError:
        raise CheckpointError(f"{path}: {what} is missing; run `surgeon apply` again") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: {what} is not UTF-8 text; run `surgeon apply` again") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object that surgeon wrote; {} if it is missing, damaged, or a link out of its folder."""
    try:
        return read_json_object(path) if inside.is_own_file(path.parent, path.name) else {}
    except (OSError, NotPlain):
        return {}


def run_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest that covers a variant, its outputs by their path in the variant; {} if there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    places = [(folder / MANIFEST, "")]
    if folder.resolve().parent.name == VARIANTS:
        places.append((folder.resolve().parent.parent / MANIFEST, f"{VARIANTS}/{folder.resolve().name}/"))
    for path, prefix in places:
        if not path.is_file():
            continue
        found = read_object(path)
        if not isinstance(found.get("outputs"), dict):
            raise CheckpointError(f"{path}: not a manifest that surgeon wrote; run `surgeon apply` again")
        outputs = {k.removeprefix(prefix): str(v) for k, v in found["outputs"].items() if k.startswith(prefix)}
        if outputs:
            return {**found, "outputs": outputs}
    return {}


def outputs_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of every file that a manifest names, by path below the output folder; damage gives nothing."""
    parts = [manifest.get(key) for key in ("outputs", "report")]
    found = {name: digest for part in parts if isinstance(part, dict) for name, digest in part.items()}
    return {name: digest for name, digest in found.items() if isinstance(digest, str)}
