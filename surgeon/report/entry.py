"""What every part of a report is: plain data that goes to JSON and back."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Entry(BaseModel):
    """Base of all parts of a report; inf and nan are written as the strings "Infinity" and "NaN", which JSON lacks."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings", extra="forbid")
