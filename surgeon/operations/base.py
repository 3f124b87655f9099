"""What every operation has: a region, new values for its entries, arithmetic that rounds once, and donors of values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import rounded
from surgeon.checkpoint.hashing import Stamp, file_stamp
from surgeon.checkpoint.sources import local_file, times_looked
from surgeon.region.mask import Indices
from surgeon.region.patch import Patch, is_patch_file

__all__ = ["Operation", "Target", "open_donor", "rounded", "values_of"]


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


def open_donor(name: str) -> Checkpoint | Patch:
    """Open a checkpoint, or a patch, that values are taken from; it stays mapped for the next tensor.

    It is opened anew when one of its files has changed; from the Hub it is the same until `sources.look_again`.

    Raises:
        CheckpointError: it is missing or damaged.
        RegionError: it is a damaged patch.
    """
    return _open(name, _files(local_file(name)), times_looked())


def values_of(donor: str, tensor: str, indices: Indices) -> NDArray[Any]:
    """Return what a donor has at flat indices of a tensor, in its own dtype.

    Raises:
        CheckpointError: the donor has no such tensor.
        RegionError: the donor is a patch that lacks one of the entries.
    """
    opened = open_donor(donor)
    if isinstance(opened, Patch):
        return opened.at(tensor, indices)
    return opened.entries(tensor, indices)


def _files(path: Path) -> tuple[tuple[str, Stamp], ...]:
    """Return the stamps of the files that say what a donor is; nothing of one that is not on this disk."""
    files = [path] if path.is_file() else []
    if path.is_dir():
        told = (file for file in path.iterdir() if file.suffix in (".safetensors", ".json"))
        files = sorted(file for file in told if file.is_file())
    return tuple((file.name, file_stamp(file.stat())) for file in files)


@lru_cache(maxsize=8)
def _open(name: str, files: tuple[tuple[str, Stamp], ...], looked: int) -> Checkpoint | Patch:
    path = local_file(name)
    return Patch.load(path) if is_patch_file(path) else Checkpoint.open(name)
