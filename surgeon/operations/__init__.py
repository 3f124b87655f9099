"""What can be done to the entries of a region; one file per operation.

An operation is a pydantic model with one key that names it and holds the region's name, and the method
`new_values`, which maps the present values of the selected entries to new ones, in the tensor's own dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Discriminator, Tag

from surgeon.kinds import kinds
from surgeon.operations.add import Add
from surgeon.operations.base import Operation, Target, open_donor, rounded
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

OPERATIONS: Mapping[str, type[Operation]] = kinds("surgeon.operations")


def _kind(value: Any) -> str | None:
    if isinstance(value, Operation):
        return value.kind
    return next((key for key in value if key in OPERATIONS), None) if isinstance(value, dict) else None


if TYPE_CHECKING:
    AnyOperation: TypeAlias = Operation
else:
    AnyOperation = Annotated[
        reduce(or_, (Annotated[operation, Tag(name)] for name, operation in OPERATIONS.items())), Discriminator(_kind)
    ]
