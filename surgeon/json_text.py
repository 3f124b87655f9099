"""JSON that any reader takes: what is not finite, which JSON has no numbers for, stands as a string.

One rule for everything that is printed or written: infinity is "Infinity" or "-Infinity", not-a-number is "NaN".
Where a perplexity may overflow, its logarithm stands beside it as a number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(data: Any) -> str:
    """Return plain data as indented JSON text."""
    return json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(item) for item in data] if isinstance(data, list | tuple) else data
