"""Where DeepSpeed keeps master weights: float32 fragments of flat buffers, one part of each on every process.

ZeRO-1 and 2 (and the bfloat16 optimizer) hold, per parameter, the fragment of it that this process updates,
and copy it to the parameter after the step. ZeRO-3 holds equal parts, in order of rank. A value written to the
parameter would be overwritten at the next step, so it is the fragment that is restored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgeon.errors import FreezeError
from surgeon.freeze.entries import encode
from surgeon.freeze.held import Held


def is_deepspeed(optimizer: Any) -> bool:
    """True for the optimizers that DeepSpeed wraps around a torch optimizer."""
    return type(optimizer).__module__.startswith("deepspeed.runtime") and hasattr(optimizer, "optimizer")


def hold_master(item: Held, zero: Any) -> Held:
    """Return what holds the float32 master of a parameter instead of the parameter itself.

    Raises:
        FreezeError: this kind of DeepSpeed optimizer does not say where its masters are.
    """
    if not item.parameter.requires_grad:
        return item
    if hasattr(zero, "get_local_fp32_param"):
        return Stage3Held(item, zero)
    if hasattr(item.parameter, "_hp_mapping"):
        return FragmentHeld(item)
    raise FreezeError(
        f"tensor '{item.name}': {type(zero).__name__} does not say where its master weights are; "
        "use ZeRO stage 1, 2 or 3"
    )


class FragmentHeld(Held):
    """Frozen entries whose masters are the fragment of a flat buffer (ZeRO-1, ZeRO-2, bfloat16 optimizer)."""

    is_partial = True
    cleans_at_once = True  # DeepSpeed takes it away
    is_counted = True  # fragments do not overlap

    def __init__(self, item: Held) -> None:
        self.name, self.copy, self.parameter, self.entries = item.name, item.copy, item.parameter, item.entries
        self.gradient_is_clean, self.gradient_hook, self.owners = False, item.gradient_hook, item.owners
        start, length = self.span()
        indices = self.entries.indices()
        first, last = torch.searchsorted(indices, torch.tensor([start, start + length]).to(indices)).tolist()
        self.part = slice(first, last)
        self.here = encode(indices[self.part].cpu().numpy() - start, (length,), indices.device)
        item.saved = item.values()[self.part]  # the other processes hold the rest
        self._keep(item.saved.float())
        self.stamp = self._stamp()
        self._hook_first()

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

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return this process's fragments of the moments."""
        fragment = self.parameter._hp_mapping  # type: ignore[attr-defined]
        return {key: fragment.get_hp_fragment(key) for key in getattr(fragment, "optim_fragment", None) or {}}

    def look(self) -> Tensor | None:
        """Return the few entries that `look_bits` tells of, of the fragment."""
        target = self.master()
        self._follow(target)
        return target.index_select(0, self.look_indices)

    def was_touched(self) -> bool:
        """Say no: the master is another tensor, whose writes are counted elsewhere."""
        return False

    def _hook_first(self) -> None:
        """Let the gradient hook run before DeepSpeed's, which takes the gradient away to reduce it."""
        hooks = self.parameter._post_accumulate_grad_hooks
        if hooks and self.gradient_hook is not None:
            hooks.move_to_end(self.gradient_hook.id, last=False)  # type: ignore[attr-defined]


class Stage3Held(FragmentHeld):
    """Frozen entries whose masters are one of equal parts (ZeRO-3)."""

    def __init__(self, item: Held, zero: Any) -> None:
        self.zero = zero
        super().__init__(item)

    def span(self) -> tuple[int, int]:
        """Return at which entry of the parameter this process's part starts, and its length without padding."""
        import torch.distributed as distributed

        length = self.parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        return distributed.get_rank(group=self.parameter.ds_process_group) * length, length  # type: ignore[attr-defined]

    def master(self) -> Tensor:
        """Return this process's part of the float32 weights, or a copy of it where they are offloaded."""
        part: Tensor = self.zero.get_local_fp32_param(self.parameter)
        return part.detach()

    def write(self) -> None:
        """Put the saved values back, also into a master that is offloaded."""
        part = self.master()
        self.here.write(part, self.values())
        self.zero.set_local_hp_param(part, self.parameter)

    def look(self) -> Tensor | None:
        """Return nothing: an offloaded master would be fetched whole."""
        return None

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return nothing: the moments are zero in a new engine, and masked gradients keep them so."""
        return {}
