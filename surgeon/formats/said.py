"""What a config says of the formats it speaks of: the quantizer's name, and the weights of each group of layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import CheckpointError

COMPRESSED = "compressed-tensors"


def require_method(settings: Mapping[str, Any], methods: Iterable[str], info: TensorInfo, stored_as: str) -> None:
    """Refuse a config that names a quantizer which does not store weights like this.

    Raises:
        CheckpointError: it does.
    """
    said = settings.get("quant_method", settings.get("format"))
    if said not in methods:
        raise CheckpointError(
            f"{info.path}: '{info.name}' is stored as {stored_as}, but the config says {str(said)[:40]!r}; fetch "
            "config.json again"
        )


def weight_groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what compressed-tensors' config says of weights, by group of layers; empty where it says nothing."""
    groups = settings.get("config_groups")
    found = (
        [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
        if isinstance(groups, Mapping)
        else []
    )
    return [weights for weights in found if isinstance(weights, Mapping)]


def whole(value: Any, low: int, high: int) -> bool:
    """True for a whole number within a range, both ends included."""
    return type(value) is int and low <= value <= high
