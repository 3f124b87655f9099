"""What the models of a recipe have in common: the base class, shares and counts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _not_a_bare_one(value: Any) -> Any:
    if type(value) is int and value == 1:
        raise ValueError("1 would be all entries: write 0.01 for one percent, or 1.0 if all are meant")
    return value


Fraction = Annotated[float, Field(gt=0.0, le=1.0), BeforeValidator(_not_a_bare_one)]
Count = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """Base of the schema: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)
