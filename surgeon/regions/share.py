"""How much is selected, of what, and by whose scores: what stands under `select`, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from surgeon.kinds import kinds
from surgeon.recipe.fields import Count, Fraction, Model
from surgeon.region.units import Aggregate, Unit

if TYPE_CHECKING:
    ScopeName = str
else:
    ScopeName = Literal[tuple(kinds("surgeon.scopes"))]

SELECTS = ("top", "bottom", "random", "count", "at_least")
End = Literal["top", "bottom"]


class Share(Model):
    """Which entries or units of the scored tensors form the region: by one of top, bottom, random, count, at_least."""

    top: Fraction | None = Field(None, description="share of the entries, or units, those of highest score")
    bottom: Fraction | None = Field(None, description="share, those of lowest score")
    random: Fraction | None = Field(None, description="share, drawn at random; needs no score")
    count: Count | None = Field(None, description="number of entries or units of highest score, instead of a share")
    at_least: Annotated[float, Field(gt=0)] | None = Field(None, description="all whose score is so high")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of `random`")
    scope: ScopeName = Field(
        "tensor",
        description="the share is taken of every tensor, of every layer, of all tensors together, or of the entries "
        "behind each output of a matrix, as Wanda compares them",
    )
    unit: Unit = Field(
        "entry", description="what is selected as a whole, and counted by shares; `docs/method.md` says what each is"
    )
    by: Aggregate = Field("mean", description="what the scores of a unit's entries become: its own score")
    monolingual: str | None = Field(None, description="a scored language: its top entries minus every other language's")
    specific: str | None = Field(
        None,
        description="a scored language: of the `top` units by how unlike the languages are (LAPE), those high in it",
    )

    @property
    def given(self) -> list[str]:
        """Which of `SELECTS` are given."""
        return [name for name in SELECTS if getattr(self, name) is not None]

    @property
    def end(self) -> End:
        """The end that is selected from."""
        return "bottom" if self.bottom is not None else "top"

    @property
    def own(self) -> str | None:
        """The language whose own entries are selected, if it is not the sum over languages that counts."""
        return self.monolingual if self.monolingual is not None else self.specific

    @property
    def fraction(self) -> float | None:
        """The share to select; None if it is no share."""
        return next((value for value in (self.top, self.bottom, self.random) if value is not None), None)

    @property
    def amount(self) -> str:
        """How much is selected of what, in words: `1 %`, `50 % of the columns`, `the 3`, `all from 0.5`."""
        whole = "" if self.unit == "entry" else f" of the {self.unit}s"
        if self.at_least is not None:
            return f"all{whole} from {self.at_least:g}"
        if self.count is not None:
            return f"the {self.count}{whole}"
        return f"{100 * (self.fraction or 0.0):g} %{whole}"

    def wanted(self, total: int) -> int:
        """Return how many of `total` entries or units are selected, or at most, if that depends on their scores."""
        if self.at_least is not None:
            return total
        return min(self.count, total) if self.count is not None else int((self.fraction or 0.0) * total)

    @model_validator(mode="after")
    def _one_kind(self) -> Share:
        given = self.given
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(SELECTS)} (given: {', '.join(given) or 'none'})")
        if self.monolingual is not None and given != ["top"]:
            raise ValueError("monolingual goes with top")
        refused = kinds("surgeon.scopes")[self.scope]().refused(self)
        if refused is not None:
            raise ValueError(refused)
        if self.by != "mean" and self.unit == "entry":
            raise ValueError("by goes with a unit, such as `unit: column`")
        if self.specific is not None and (given != ["top"] or self.unit == "entry" or self.monolingual is not None):
            raise ValueError("specific goes with top and a unit, such as `unit: neuron`, and without monolingual")
        return self
