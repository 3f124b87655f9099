"""What every operation has: a region, new values for its entries, and arithmetic that rounds once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from surgeon.checkpoint.coded import rounded
from surgeon.region.region import Indices

__all__ = ["Operation", "Target", "rounded"]


@dataclass(frozen=True)
class Target:
    """The tensor that an operation is at work on.

    `indices` are the region's entries in it, flat and sorted. `parts` are the entries of each of the operation's
    regions. `whole` is the tensor, or a function that reads it.
    """

    name: str
    indices: Indices
    whole: NDArray[Any] | Callable[[], NDArray[Any]]
    parts: tuple[Indices, ...] = ()

    @property
    def source(self) -> NDArray[Any]:
        """The whole tensor as it is in the source checkpoint, before any operation, read-only.

        Of a quantized checkpoint all of it is decoded when this is asked for.
        """
        return self.whole() if callable(self.whole) else self.whole


class Operation(BaseModel):
    """Base of the operations. The key that names the operation, `kind`, holds the region's name."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    kind: ClassVar[str]
    zeroes: ClassVar[bool] = False  # whether every entry becomes zero, of which a quantized one has an exact code
    bytes_per_entry: ClassVar[int] = 40  # of memory that an edit takes, about

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions that are acted on, in their union; mostly one."""
        return (str(getattr(self, self.kind)),)

    @property
    def takes(self) -> tuple[tuple[str, str], ...]:
        """Other models that values are taken from, each with the region that it must have."""
        return ()

    @property
    def donors(self) -> tuple[str, ...]:
        """Other models that values are taken from."""
        return tuple(dict.fromkeys(donor for _, donor in self.takes))

    def described(self) -> list[str]:
        """Return what is done to which region, a line per region."""
        return [f"{self.kind} {region}" for region in dict.fromkeys(self.regions)]

    @abstractmethod
    def new_values(self, values: NDArray[Any], target: Target) -> NDArray[Any]:
        """Return what becomes of `values`, the target's entries as earlier operations left them.

        Shape (n,), dtype unchanged. Entries of quantized tensors come in float64, so that they are rounded once, when
        they are encoded.
        """
