"""Where each on-disk tensor stands in the model that transformers builds, both ways.

Mostly a tensor is a parameter of its own. Experts are the exception: on disk each expert has its own matrices,
while transformers 5 holds them fused, as `gate_up_proj` of shape (experts, 2 * width, hidden) and `down_proj` of
shape (experts, hidden, width). A `Slot` names the part of a parameter that one on-disk tensor is, so that gradients
are read, and edits are written, in the names and shapes of the disk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_EXPERT = re.compile(r"(?:^|\.)layers\.(?P<layer>\d+)\..*\bexperts\.(?P<expert>\d+)\.(?P<projection>\w+)\.weight$")
_FUSED = re.compile(r"(?:^|\.)layers\.(?P<layer>\d+)\..*\bexperts\.(?P<projection>gate_up_proj|down_proj)$")
# An expert's projection on disk -> the fused parameter, and which half of its rows.
_PARTS = {
    "w1": ("gate_up_proj", 0), "gate_proj": ("gate_up_proj", 0),
    "w3": ("gate_up_proj", 1), "up_proj": ("gate_up_proj", 1),
    "w2": ("down_proj", None), "down_proj": ("down_proj", None),
}  # fmt: skip
_RENAMED = ((".block_sparse_moe.", ".mlp."), ("embed_out.", "lm_head."))  # from the disk to transformers 5


@dataclass(frozen=True, eq=False)
class Slot:
    """The part of a model parameter that is one on-disk tensor: `index` is applied to the parameter."""

    parameter: torch.nn.Parameter
    index: tuple[int | slice, ...] = ()

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the same part, as a view, of a tensor of the parameter's shape, such as its gradient."""
        return tensor[self.index] if self.index else tensor

    def values(self) -> torch.Tensor:
        """Return a view of the parameter's present values, outside of autograd."""
        return self.of(self.parameter.detach())

    @property
    def offset(self) -> int:
        """Flat index, in the parameter, of the part's first entry; parts are contiguous in row-major order."""
        starts = (at.start if isinstance(at, slice) else at for at in self.index)
        return sum(start * math.prod(self.parameter.shape[axis + 1 :]) for axis, start in enumerate(starts))


def bind(model: Any, views: Mapping[str, torch.Tensor]) -> dict[str, Slot]:
    """Map on-disk names to slots of the model's parameters.

    A parameter that shares a view's memory is that tensor; where loading converted a dtype, its name decides;
    where loading fused experts, the rule above does, and is believed only if the values agree. A tensor that
    is none of these (a stored buffer, an unknown conversion) is left out. On the meta device, where there are
    neither addresses nor values, names and shapes decide alone.
    """
    addresses = {view.data_ptr(): name for name, view in views.items() if view.numel() and not view.is_meta}
    slots: dict[str, Slot] = {}
    fused: dict[tuple[str, str], torch.nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        stored = addresses.get(parameter.data_ptr())
        if stored is None:
            stored = next((other for other in _aliases(name, model.base_model_prefix + ".") if other in views), None)
        match = _FUSED.search(name)
        if stored is not None and views[stored].shape == parameter.shape:
            slots[stored] = Slot(parameter)
        elif match is not None:
            fused[match["layer"], match["projection"]] = parameter
    for name, view in views.items() if fused else ():
        slot = _expert_slot(name, view, fused) if name not in slots else None
        if slot is not None:
            slots[name] = slot
    return slots


def _aliases(name: str, prefix: str) -> Iterator[str]:
    """Names on disk that a parameter may have: with and without the base model's prefix, and before renaming."""
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        yield candidate
        for stored, renamed in _RENAMED:
            yield candidate.replace(renamed, stored)


def _expert_slot(name: str, view: torch.Tensor, fused: Mapping[tuple[str, str], torch.nn.Parameter]) -> Slot | None:
    match = _EXPERT.search(name)
    if match is None or match["projection"] not in _PARTS:
        return None
    projection, half = _PARTS[match["projection"]]
    parameter = fused.get((match["layer"], projection))
    expert = int(match["expert"])
    if parameter is None or parameter.dim() != 3 or expert >= parameter.shape[0]:
        return None
    rows = view.shape[0]
    slot = Slot(parameter, (expert,) if half is None else (expert, slice(half * rows, (half + 1) * rows)))
    values = slot.values()
    if values.shape != view.shape:
        return None
    agrees = view.is_meta or bool((values[0] == view[0].to(values.dtype)).all())
    return slot if agrees else None
