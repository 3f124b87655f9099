"""In which arithmetic a model is run."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "native"]


def resolve_precision(dtype: Literal["auto", "float32", "native"]) -> Precision:
    """Turn `auto` into float32, whatever the device: what is found shall not depend on where it was computed."""
    return "float32" if dtype == "auto" else dtype
