"""One frozen parameter: its frozen entries, their values, and what is done to them.

All writes and comparisons go through integers of the same width, so that they are about bits: a NaN equals
itself and a negative zero is not zero.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import FreezeError
from surgeon.freeze.binding import Bound
from surgeon.freeze.bundle import Bundle
from surgeon.freeze.entries import SHORT, bits, encode
from surgeon.freeze.layout import (
    is_distributed,
    is_first_replica,
    local,
    local_flat,
    part_here,
    shape_of,
    whole_flat,
)
from surgeon.region.mask import Indices

logger = logging.getLogger(__name__)
_NARROWER = {torch.float32: (torch.bfloat16, torch.float16), torch.float64: (torch.bfloat16, torch.float32)}
_LOOKED_AT = 8  # entries of a parameter that are looked at before every step, and the outermost ones


class Held:
    """The frozen entries of one parameter in this process.

    `entries` are flat indices into what this process holds of the parameter and of its gradient, `saved` their
    values, in the narrowest dtype that holds them exactly. `part` is the slice of them whose master weights are here,
    `here` their indices in `master()`. `copy` counts the parameters that an untied model has under the names of one
    tensor. `indices` are flat indices into the whole parameter; their `values` are those that it has now if none are
    given.
    """

    steps = 0  # since it is held
    is_partial = False  # the masters are spread over processes
    cleans_at_once = False  # the gradient must be clean as soon as it is there, not only when the pass is through
    part = slice(None)
    gradient_is_clean = False
    gradient_hook: Any = None
    was_mended = False  # at a save, which is told by the next `verify`

    def __init__(
        self,
        name: str,
        parameter: torch.nn.Parameter,
        indices: Indices,
        copy: int = 0,
        values: Tensor | None = None,
    ) -> None:
        self.name, self.copy, self.parameter = name, copy, parameter
        self.is_partial = is_distributed(parameter)
        mine, positions = part_here(parameter, indices, f"tensor '{name}'")
        self.entries = self.here = encode(mine, tuple(local(parameter).shape), parameter.device)
        if values is None:
            values = self._in_other(parameter)
        elif positions is not None:
            values = values[torch.from_numpy(positions).to(values.device)]
        self._keep(values.to(parameter.device))

    def _keep(self, values: Tensor) -> None:
        """Save values, and choose which of them are looked at before every step: the outermost ones, and some more.

        Whatever clamps, scales, rounds or prunes a tensor changes one of these.
        """
        self.saved = values
        for narrow in _NARROWER.get(values.dtype, ()) if values.numel() > SHORT else ():
            if torch.equal(bits(values.to(narrow).to(values.dtype)), bits(values)):
                self.saved = values.to(narrow)
                break
        spread = torch.linspace(0, max(0, values.numel() - 1), min(_LOOKED_AT, values.numel())).long()
        numbers = values.float()
        finite = numbers.nan_to_num()
        outermost = [finite.argmin(), finite.argmax(), finite.abs().argmin()] if values.numel() else []
        looked_at = torch.unique(torch.cat([spread.to(values.device), *(at.view(1) for at in outermost)]))
        looked_at = looked_at[~numbers[looked_at].isnan()]
        self.look_indices = self.here.indices()[looked_at]
        self.look_values = values[looked_at]
        self.stamp = self._stamp()

    @property
    def count(self) -> int:
        """Number of frozen entries whose masters are in this process."""
        return self.saved.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken."""
        kept = {self.entries.kept, self.here.kept, self.saved, self.look_indices, self.look_values}
        return sum(tensor.nbytes for tensor in kept)

    @property
    def is_counted(self) -> bool:
        """True in one process of those that hold the same entries."""
        return is_first_replica(self.parameter)

    def master(self) -> Tensor:
        """Return the flat weights that the optimizer changes, as far as this process holds them."""
        return local_flat(self.parameter, f"tensor '{self.name}'")

    def values(self, like: Tensor) -> Tensor:
        """Return the saved values on the device and in the dtype of another tensor, rounded if that is narrower."""
        if self.saved.device != like.device:  # the model was moved after freezing
            self.saved, self.look_values = self.saved.to(like.device), self.look_values.to(like.device)
            self.look_indices = self.look_indices.to(like.device)
            self.entries, self.here = self.entries.on(like.device), self.here.on(like.device)
        return self.saved.to(like.dtype)

    def write(self) -> None:
        """Put the saved values back."""
        target = self.master()
        self.here.write(target, self.values(target))
        self.stamp = self._stamp()

    def moved(self) -> int:
        """Return how many frozen entries in this process do not hold their saved bits."""
        now, then = self._now_and_then()
        return int((now != then).sum())

    def seems_moved(self) -> bool:
        """Like `moved`, as it is asked between steps: without a mask of all entries it takes a fraction of the time."""
        return not torch.equal(*self._now_and_then())

    def _now_and_then(self) -> tuple[Tensor, Tensor]:
        target = self.master()
        values = self.values(target)  # which moves `here` along
        return bits(self.here.select(target)), bits(values)

    def mend(self) -> None:
        """Put the values back, and remember that this was needed."""
        logger.error("tensor '%s': frozen entries had moved, and were put back before saving", self.name)
        self.was_mended = True
        self.write()

    def was_touched(self) -> bool:
        """True if the parameter was written to since the last `write`, as far as autograd counts writes."""
        return self.stamp != self._stamp()

    def look(self) -> Tensor | None:
        """Return the few entries that are looked at, or None where that is not cheap."""
        target = self.master()
        if self.look_values.device != target.device:
            self.values(target)
        return target.index_select(0, self.look_indices)

    def moved_in(self, parameter: Tensor) -> int:
        """Return how many entries differ in another copy of the parameter, which may be of a narrower dtype."""
        self.require_same_shards(parameter)
        found = self._in_other(parameter)[self.part]
        return int((bits(found) != bits(self.saved.to(found))).sum())

    def write_to(self, parameter: Tensor) -> None:
        """Put the saved values into another copy of the parameter."""
        self.require_same_shards(parameter)
        if hasattr(parameter, "ds_id"):
            raise FreezeError(f"tensor '{self.name}': restore works on a saved ZeRO-3 model, not on a running one")
        flat = local_flat(parameter, f"tensor '{self.name}'")
        bits(flat).scatter_(0, self.entries.indices()[self.part].to(flat.device), bits(self.saved.to(flat)))

    def _in_other(self, parameter: Tensor) -> Tensor:
        """Return the entries in a copy of the parameter, which is gathered where ZeRO-3 has spread it."""
        if hasattr(parameter, "ds_id"):
            with whole_flat(parameter) as flat:
                return self.entries.select(flat)
        flat = local_flat(parameter, f"tensor '{self.name}'")
        return self.entries.on(flat.device).select(flat)

    def in_place_of(self, place: Bound, bundle: Bundle) -> Held:
        """Return the same entries held in a parameter that has taken this one's place, sharded perhaps.

        The bundle is not asked, since the values are at hand.

        Raises:
            FreezeError: this one is sharded already, so that the whole values are not at hand.
        """
        if self.is_partial:
            raise FreezeError(f"tensor '{self.name}': was distributed anew after freeze(); freeze after that")
        return Held(self.name, place.parameter, self.entries.indices().cpu().numpy(), self.copy, self.saved)

    def zero_gradient(self) -> None:
        """Set the gradient of the frozen entries to zero.

        Raises:
            FreezeError: the gradient is sparse.
        """
        if self.parameter.grad is not None:
            flat = self.flat_gradient(self.parameter.grad)
            self.entries.on(flat.device).clear(flat)
            self.gradient_is_clean = True

    def flat_gradient(self, gradient: Tensor) -> Tensor:
        """Return a gradient as one dimension.

        Raises:
            FreezeError: it is sparse, so that no entry of it can be zeroed.
        """
        if gradient.is_sparse:
            raise FreezeError(
                f"tensor '{self.name}': its gradient is sparse; make the embedding with sparse=False to freeze entries"
            )
        return local_flat(gradient, f"the gradient of tensor '{self.name}'")

    def require_same_shards(self, other: Tensor) -> None:
        """Refuse another copy of the parameter in which `entries` are other places.

        Raises:
            FreezeError: it is distributed in another way, or has other rows.
        """
        mine, theirs = (getattr(parameter, "placements", None) for parameter in (self.parameter, other))
        same_rows = shape_of(self.parameter)[1:] == shape_of(other)[1:]
        if mine != theirs or not same_rows or (mine is not None and self.parameter.shape != other.shape):
            raise FreezeError(
                f"tensor '{self.name}': the other model is not distributed as the frozen one; save it and use "
                "verify_saved"
            )

    def _stamp(self) -> tuple[int, int]:
        parameter = self.parameter
        return parameter._version, 0 if self.is_partial else parameter.data_ptr()


def first_that_differs(items: Sequence[Held]) -> Held | None:
    """Return a parameter whose looked-at entries are other numbers; one comparison per dtype and device."""
    looks: dict[tuple[Any, Any], list[tuple[Held, Tensor]]] = {}
    for item in items:
        seen = item.look()
        if seen is not None:
            looks.setdefault((seen.dtype, seen.device), []).append((item, seen))
    for (dtype, _), pairs in looks.items():
        now, then = torch.cat([seen for _, seen in pairs]), torch.cat([item.look_values for item, _ in pairs]).to(dtype)
        if dtype.itemsize < 4:
            now, then = now.float(), then.float()  # not every narrow dtype can be compared
        if not torch.equal(now, then):
            ends = torch.tensor([seen.numel() for _, seen in pairs]).cumsum(0)
            place = int((now != then).nonzero()[0])
            return pairs[int(torch.searchsorted(ends, place, right=True))][0]
    return None


def sum_over_processes(held: Sequence[Held], moved: list[int]) -> tuple[list[int], int]:
    """Add up over processes, entries that several hold once; one that moved in any of them counts.

    Returns these sums, and the number of all entries.
    """
    import torch.distributed as distributed

    counted = [item.is_counted for item in held]
    once = [*(count * here for count, here in zip(moved, counted, strict=True))]
    entries = sum(item.count for item, here in zip(held, counted, strict=True) if here)
    device = distributed.distributed_c10d._get_pg_default_device()
    sums, worst = (torch.tensor(each, dtype=torch.int64, device=device) for each in ([*once, entries], moved))
    distributed.all_reduce(sums)
    distributed.all_reduce(worst, distributed.ReduceOp.MAX)
    *totals, entries = sums.tolist()
    return [max(total, most) for total, most in zip(totals, worst.tolist(), strict=True)], entries
