"""In which arithmetic a model is run."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "native"]


def resolve_precision(dtype: Literal["auto", "float32", "native"], device: str) -> Precision:
    """Turn `auto` into float32 on a CPU, where it is both faster and more exact, and native elsewhere."""
    if dtype == "auto":
        return "float32" if device == "cpu" else "native"
    return dtype
