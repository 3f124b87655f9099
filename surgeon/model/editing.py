"""A variant in memory: its edits poked into the layers of the loaded model while they are run, and put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from surgeon.checkpoint.tensors import as_tensor
from surgeon.checkpoint.ties import stored_copies
from surgeon.errors import CheckpointError
from surgeon.model.model import LoadedModel
from surgeon.operations import Operation
from surgeon.operations.edits import edited_indices, make_edit, touched_tensors
from surgeon.region.region import Indices, Region


@dataclass(frozen=True)
class Variant:
    """A model to be measured: the loaded one with operations done to it; without any it is the base."""

    name: str
    operations: Sequence[Operation] = ()
    regions: Mapping[str, Region] | None = None

    def touched(self, loaded: LoadedModel) -> list[str]:
        """Return the tensors to edit by the names under which the model holds them, tied copies once.

        Raises:
            CheckpointError: one is no parameter of the model.
        """
        result: dict[str, None] = {}
        for name in touched_tensors(loaded.checkpoint, self.operations, self.regions or {}):
            held = [alias for alias in stored_copies(loaded.checkpoint.ties, name) if alias in loaded.parameters]
            if not held:
                raise CheckpointError(
                    f"tensor '{name}' is not a parameter of {type(loaded.model).__name__} as transformers builds it, "
                    "so the variant cannot be measured in memory: exclude it, or write the variant and "
                    "`surgeon verify` it"
                )
            result[held[0]] = None
        return list(result)


@contextmanager
def edited(loaded: LoadedModel, variant: Variant, names: Iterable[str]) -> Iterator[None]:
    """Poke a variant's edits into some of its tensors, whose parameters must be resident; put the source's back after.

    The source's values come from the mapped file, so only indices are kept meanwhile.
    """
    names, regions = list(names), variant.regions or {}

    def poke(name: str, indices: Indices, values: NDArray[Any]) -> None:
        parameter = loaded.parameters[name].values()
        at = torch.from_numpy(indices).to(parameter.device)
        parameter.view(-1)[at] = as_tensor(values).to(parameter.device, parameter.dtype)

    done = []
    try:
        for name in names:
            edit = make_edit(loaded.checkpoint, name, variant.operations, regions)
            done.append(name)
            poke(name, edit.indices, edit.values)
        yield
    finally:
        for name in done:
            indices = edited_indices(loaded.checkpoint, name, variant.operations, regions)
            poke(name, indices, loaded.checkpoint.array(name).reshape(-1)[indices])
