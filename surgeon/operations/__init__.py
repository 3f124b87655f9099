"""What can be done to the entries of a region; one file per operation.

An operation is a pydantic model whose first key names the operation and holds the region's name, and a
function that maps the present values of the selected entries to new ones, in the tensor's own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from surgeon.operations.zero import Zero, zeroed

Operation = Zero

OPERATIONS: Mapping[str, type[Zero]] = {"zero": Zero}

_FUNCTIONS: Mapping[type[Zero], Callable[[NDArray[Any]], NDArray[Any]]] = {Zero: zeroed}


def region_of(operation: Operation) -> str:
    """Return the name of the region that an operation acts on."""
    return operation.zero


def new_values(operation: Operation, values: NDArray[Any]) -> NDArray[Any]:
    """Return what an operation makes of the selected entries, shape (n,), dtype unchanged."""
    return _FUNCTIONS[type(operation)](values)
