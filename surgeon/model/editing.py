"""A variant in memory: its edits poked into the layers of the loaded model while they are run, and put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray

from surgeon.checkpoint.ties import stored_copies
from surgeon.checkpoint.torch_files import as_tensor
from surgeon.errors import CheckpointError
from surgeon.model import budgets
from surgeon.model.model import LoadedModel
from surgeon.operations import Operation
from surgeon.operations.edits import Edit, Surgery
from surgeon.region.mask import Indices
from surgeon.region.region import Region


@dataclass(frozen=True)
class Variant:
    """A model to be measured: the loaded one with operations done to it; without any it is the base.

    `edits` are what the operations make of each tensor, where that was made beforehand (`prepared`). A
    `plain` one is dequantized, so that its edits are made in the logical dtype.
    """

    name: str
    operations: Sequence[Operation] = ()
    regions: Mapping[str, Region] | None = None
    edits: Mapping[str, Edit] | None = None
    plain: bool = False

    def surgery(self, loaded: LoadedModel) -> Surgery:
        """Return what is done to a model."""
        source = loaded.checkpoint.dequantized() if self.plain else loaded.checkpoint
        return Surgery(source, self.operations, self.regions or {})

    def touched(self, loaded: LoadedModel) -> list[str]:
        """Return the tensors to edit by the names under which the model holds them, tied copies once.

        Raises:
            CheckpointError: one is no parameter of the model.
        """
        result: dict[str, None] = {}
        for name in self.surgery(loaded).touched:
            held = [alias for alias in stored_copies(loaded.checkpoint.ties, name) if alias in loaded.parameters]
            if not held:
                raise CheckpointError(
                    f"tensor '{name}' is not a parameter of {type(loaded.model).__name__} as transformers builds it, "
                    "so the variant cannot be measured in memory: exclude it, or write the variant and "
                    "`surgeon verify` it"
                )
            result[held[0]] = None
        return list(result)


def prepared(
    loaded: LoadedModel, variants: Sequence[Variant], names: Sequence[Sequence[str]] | None = None
) -> list[Variant]:
    """Make the edits of variants beforehand, where they are made and undone many times, unless they are too many.

    `names` are those of the tensors that each is edited in; all that it touches if not given.
    """
    names = [variant.touched(loaded) for variant in variants] if names is None else names
    pairs = list(zip(variants, names, strict=True))
    entries = sum(_entries(loaded, variant, name) for variant, tensors in pairs for name in tensors)
    if entries * budgets.EDIT_BYTES_PER_ENTRY > budgets.EDITS_BYTES:
        return list(variants)
    return [
        variant
        if variant.edits is not None or not tensors
        else replace(variant, edits={name: _edit(loaded, variant, name) for name in tensors})
        for variant, tensors in pairs
    ]


def _entries(loaded: LoadedModel, variant: Variant, name: str) -> int:
    """Return how many entries of a tensor a variant's regions hold, at most."""
    copies = stored_copies(loaded.checkpoint.ties, name)
    regions = (variant.regions or {}).values()
    return sum(region[copy].entries for region in regions for copy in copies if copy in region)


def _edit(loaded: LoadedModel, variant: Variant, name: str) -> Edit:
    if variant.edits is not None:
        return variant.edits[name]
    return variant.surgery(loaded).edit(name)


@contextmanager
def edited(loaded: LoadedModel, variant: Variant, names: Iterable[str]) -> Iterator[None]:
    """Poke a variant's edits into some of its tensors, whose parameters must be resident; put the source's back after.

    The source's values come from the mapped file, so that nothing is kept meanwhile, unless edits were made beforehand.
    """
    names = list(names)

    def poke(name: str, indices: Indices, values: NDArray[Any]) -> None:
        loaded.parameters[name].set(torch.from_numpy(indices), as_tensor(values))

    done = []
    try:
        for name in names:
            edit = _edit(loaded, variant, name)
            done.append(name)
            poke(name, edit.indices, edit.values)
        yield
    finally:
        for name in done:
            if variant.edits is not None:
                poke(name, variant.edits[name].indices, variant.edits[name].before)
                continue
            indices = variant.surgery(loaded).indices(name)
            poke(name, indices, loaded.checkpoint.entries(name, indices))
