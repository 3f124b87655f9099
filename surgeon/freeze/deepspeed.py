"""Where DeepSpeed keeps master weights: float32 fragments of flat buffers, one part of each on every process.

ZeRO-1 and 2 (and the bfloat16 optimizer) hold, per parameter, the fragment of it that this process updates,
and copy it to the parameter after the step. ZeRO-3 holds equal parts, in order of rank. A value written to the
parameter would be overwritten at the next step, so it is the fragment that is restored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgeon.freeze.entries import encode
from surgeon.freeze.held import Held


def is_elsewhere(parameter: Any) -> bool:
    """True for a parameter whose master weights are DeepSpeed's; it says so itself."""
    return parameter.requires_grad and (hasattr(parameter, "_hp_mapping") or hasattr(parameter, "_z3_optimizer"))


def with_master(item: Held) -> Held:
    """Return what holds the float32 master of a parameter, where there is one, instead of the parameter itself."""
    if item.is_partial or not is_elsewhere(item.parameter):
        return item
    return Stage3Held(item) if hasattr(item.parameter, "ds_id") else FragmentHeld(item)


class FragmentHeld(Held):
    """Frozen entries whose masters are the fragment of a flat buffer (ZeRO-1, ZeRO-2, bfloat16 optimizer)."""

    is_partial = True
    cleans_at_once = True  # DeepSpeed takes it away
    is_counted = True  # fragments do not overlap

    def __init__(self, item: Held) -> None:
        self.name, self.copy, self.parameter, self.entries = item.name, item.copy, item.parameter, item.entries
        self.gradient_hook = item.gradient_hook
        start, length = self.span()
        indices = self.entries.indices()
        first, last = torch.searchsorted(indices, torch.tensor([start, start + length]).to(indices)).tolist()
        self.part = slice(first, last)
        self.here = encode(indices[self.part].cpu().numpy() - start, (length,), indices.device)
        self._keep(item.saved[self.part].to(self.parameter.dtype).float())

    def span(self) -> tuple[int, int]:
        """Return at which entry of the parameter this process's fragment starts, and its length."""
        fragment = self.parameter._hp_mapping  # type: ignore[attr-defined]
        if fragment is None:
            return 0, 0
        return fragment.lp_fragment_address.start, fragment.lp_fragment_address.numel

    def master(self) -> Tensor:
        """Return this process's fragment of the float32 weights."""
        fragment = self.parameter._hp_mapping  # type: ignore[attr-defined]
        return self.saved[:0].float() if fragment is None else fragment.get_hp_fragment().detach()

    def was_touched(self) -> bool:
        """Say no: the master is another tensor, whose writes are counted elsewhere."""
        return False


class Stage3Held(FragmentHeld):
    """Frozen entries whose masters are one of equal parts (ZeRO-3)."""

    def span(self) -> tuple[int, int]:
        """Return at which entry of the parameter this process's part starts, and its length without padding."""
        parameter: Any = self.parameter
        length = parameter.ds_tensor.ds_numel
        return torch.distributed.get_rank(group=parameter.ds_process_group) * length, length

    def master(self) -> Tensor:
        """Return this process's part of the float32 weights, or a copy of it where they are offloaded."""
        parameter: Any = self.parameter
        part: Tensor = parameter._z3_optimizer.get_local_fp32_param(parameter)
        return part.detach()

    def write(self) -> None:
        """Put the saved values back, also into a master that is offloaded."""
        parameter: Any = self.parameter
        part = self.master()
        self.here.write(part, self.values(part))
        parameter._z3_optimizer.set_local_hp_param(part, parameter)

    def look(self) -> Tensor | None:
        """Return nothing: an offloaded master would be fetched whole."""
        return None
