"""`surgeon.json`, the marker of a variant: what was done to which model, and the SHA-256 of what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from surgeon import inside
from surgeon.checkpoint.fingerprint import damaged
from surgeon.checkpoint.plain_json import NotPlain, read_object
from surgeon.errors import InputError, shorten
from surgeon.operations.edits import EditCount

MARKER = "surgeon.json"
MOST_OPERATIONS = 1000  # each is looked at, and shown


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
