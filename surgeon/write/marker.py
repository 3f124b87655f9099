"""Markers of variants and manifests of runs: what they say, and whether the files on disk are those that they name.

`surgeon.json`, the marker of a variant, says what was done to which model, and the SHA-256 of what came out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from surgeon import inside
from surgeon.checkpoint.fingerprint import damaged
from surgeon.checkpoint.plain_json import NotPlain, read_object
from surgeon.errors import CheckpointError, InputError, shorten
from surgeon.operations.edits import EditCount

MARKER = "surgeon.json"
MOST_OPERATIONS = 1000  # each is looked at, and shown
_LONGEST_TEXT = 1 << 26  # bytes; pages of hundreds of languages have some ten megabytes
MANIFEST, RECIPE = "manifest.json", "recipe.yaml"
VARIANTS, REGIONS = "variants", "regions"
CARD, FIGURES, SAMPLES = "README.md", "figures", "samples"


class MarkedModel(BaseModel):
    """The model that was operated on; `content_sha256` is over all its tensors, empty while that is not known."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    source: str
    revision: str | None
    content_sha256: str


class Marker(BaseModel):
    """What tells a variant from all others.

    `dtype` is that of a plain checkpoint made of quantized weights. `donors` and `regions` are SHA-256 by name.
    `tensors` and `entries` count what the operations acted on, stored copies of tied weights included; `edits` count
    those once, and are None in a variant of an older surgeon. `files` are the SHA-256 of the weights and of what came
    along, by path in the variant; not of the card and its figures, which tell of measurements, nor of the marker.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="strings")

    variant: str
    operations: Annotated[list[dict[str, Any]], Field(max_length=MOST_OPERATIONS)]
    donors: dict[str, str] = {}
    freeze: str | None = None
    train_only: str | None = None
    dtype: str | None = None
    regions: dict[str, str]
    model: MarkedModel
    recipe: dict[str, Any]
    tensors: int = 0
    entries: int = 0
    edits: EditCount | None = None
    files: dict[str, str] = {}

    @classmethod
    def read(cls, folder: Path) -> Marker:
        """Read the marker of a variant; what a newer surgeon may have added to it is passed over.

        Raises:
            InputError: there is none, or it is not one.
        """
        path = folder / MARKER
        try:
            return cls.model_validate(read_object(path))
        except OSError:
            why = f"no readable {MARKER}"
        except NotPlain as error:
            why = f"{MARKER} is damaged: {error}"
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            why = f"{MARKER} is damaged{f' at {where}' if where else ''}: {first['msg']}"
        inside = sorted(str(path.parent) for path in (folder / "variants").glob(f"[!.]*/{MARKER}"))
        such = f"one of {shorten(inside)}" if inside else "a folder such as out/NAME/variants/VARIANT"
        raise InputError(f"{folder}: not a variant that `surgeon apply` wrote ({why}); name {such}")

    def text(self) -> str:
        """Return the file's content."""
        return self.model_dump_json(indent=2) + "\n"

    def matches(self, other: Marker) -> bool:
        """True if both say that the same was done to the same.

        What came out is not compared, nor is the rest of the recipe: other variants, or how they are measured, make
        no other bytes here.
        """
        return self._asked() == other._asked()

    def _asked(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"recipe", "tensors", "entries", "edits", "files"})

    def intact(self, folder: Path, jobs: int) -> bool:
        """True if every file in `folder` is as it was written; those of a variant that names none are not known.

        A link is not what was written, wherever it leads.
        """
        whole = bool(self.files) and not damaged(folder, self.files, jobs)
        return whole and all(inside.is_plain_file(folder, name) for name in self.files)


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
        named = outputs_of(read_own(folder / MANIFEST))
        expected = {k: v for k, v in named.items() if not (k.startswith(f"{VARIANTS}/") and k.endswith(f"/{CARD}"))}
    wrong = damaged(folder, expected, jobs)
    if wrong:
        more = f", and {len(wrong) - 1} more files" if len(wrong) > 1 else ""
        raise CheckpointError(f"{wrong[0]}{more}; run `surgeon apply` again")
    return len(expected)


def is_output(folder: Path) -> bool:
    """True for a folder that a run of surgeon wrote as its output."""
    return not (folder / MARKER).exists() and bool(outputs_of(read_own(folder / MANIFEST)))


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


def read_own(path: Path) -> dict[str, Any]:
    """Read a JSON object that surgeon wrote; {} if it is missing, damaged, or a link out of its folder."""
    try:
        return read_object(path) if inside.is_own_file(path.parent, path.name) else {}
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
        manifest = read_own(path)
        if not isinstance(manifest.get("outputs"), dict):
            raise CheckpointError(f"{path}: not a manifest that surgeon wrote; run `surgeon apply` again")
        outputs = {k.removeprefix(prefix): str(v) for k, v in manifest["outputs"].items() if k.startswith(prefix)}
        if outputs:
            return {**manifest, "outputs": outputs}
    return {}


def outputs_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of every file that a manifest names, by path below the output folder; damage gives nothing."""
    parts = [manifest.get(key) for key in ("outputs", "report")]
    outputs = {name: digest for part in parts if isinstance(part, dict) for name, digest in part.items()}
    return {name: digest for name, digest in outputs.items() if isinstance(digest, str)}
