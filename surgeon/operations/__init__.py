"""What can be done to the entries of a region; one file per operation.

An operation is a pydantic model with one key that names it and holds the region's name, and the method
`new_values`, which maps the present values of the selected entries to new ones, in the tensor's own dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Tag

from surgeon.operations.add import Add
from surgeon.operations.base import Operation, Target, rounded
from surgeon.operations.donors import open_donor
from surgeon.operations.fill import Fill
from surgeon.operations.noise import Noise
from surgeon.operations.restore import Restore
from surgeon.operations.scale import Scale
from surgeon.operations.shuffle import Shuffle
from surgeon.operations.slerp import Slerp
from surgeon.operations.zero import Zero

__all__ = [
    "OPERATIONS",
    "Add",
    "AnyOperation",
    "Fill",
    "Noise",
    "Operation",
    "Restore",
    "Scale",
    "Shuffle",
    "Slerp",
    "Target",
    "Zero",
    "open_donor",
    "rounded",
]

OPERATIONS: Mapping[str, type[Operation]] = {
    operation.kind: operation for operation in (Zero, Scale, Fill, Noise, Shuffle, Restore, Add, Slerp)
}


def _kind(value: Any) -> str | None:
    if isinstance(value, Operation):
        return value.kind
    return next((key for key in value if key in OPERATIONS), None) if isinstance(value, dict) else None


AnyOperation: TypeAlias = Annotated[
    Annotated[Zero, Tag("zero")]
    | Annotated[Scale, Tag("scale")]
    | Annotated[Fill, Tag("fill")]
    | Annotated[Noise, Tag("noise")]
    | Annotated[Shuffle, Tag("shuffle")]
    | Annotated[Restore, Tag("restore")]
    | Annotated[Add, Tag("add")]
    | Annotated[Slerp, Tag("slerp")],
    Discriminator(_kind),
]
