"""One frozen parameter: its frozen entries, their values, and what is done to them.

All writes and comparisons go through integers of the same width, so that they are about bits: a NaN equals
itself and a negative zero is not zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import FreezeError
from surgeon.freeze.entries import bits, encode
from surgeon.freeze.layout import (
    is_distributed,
    is_first_replica,
    local,
    local_flat,
    part_here,
    shape_of,
    whole_flat,
)
from surgeon.region.region import Indices

_NARROWER = {torch.float32: (torch.bfloat16, torch.float16), torch.float64: (torch.bfloat16, torch.float32)}
_SHORT = 1024  # values that are kept as wide as they are
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
            with self.flat_view(parameter) as flat:
                values = self.entries.select(flat)
        elif positions is not None:
            values = values[torch.from_numpy(positions).to(values.device)]
        self._keep(values.to(parameter.device))

    def _keep(self, values: Tensor) -> None:
        """Save values, and choose which of them are looked at before every step: the outermost ones, and some more.

        Whatever clamps, scales, rounds or prunes a tensor changes one of these.
        """
        self.saved = values
        for narrow in _NARROWER.get(values.dtype, ()) if values.numel() > _SHORT else ():
            if torch.equal(bits(values.to(narrow).to(values.dtype)), bits(values)):
                self.saved = values.to(narrow)
                break
        spread = torch.linspace(0, max(0, values.numel() - 1), min(_LOOKED_AT, values.numel())).long()
        finite = values.float().nan_to_num()
        outermost = [finite.argmin(), finite.argmax(), finite.abs().argmin()] if values.numel() else []
        looked_at = torch.unique(torch.cat([spread.to(values.device), *(at.view(1) for at in outermost)]))
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

    @contextmanager
    def flat_view(self, parameter: Tensor) -> Iterator[Tensor]:
        """Yield a parameter as one dimension in which `entries` hold."""
        if hasattr(parameter, "ds_id"):
            with whole_flat(parameter) as flat:
                yield flat
        else:
            yield local_flat(parameter.data, f"tensor '{self.name}'")

    def master(self) -> Tensor:
        """Return the flat weights that the optimizer changes, as far as this process holds them."""
        return local_flat(self.parameter.data, f"tensor '{self.name}'")

    def values(self, like: Tensor) -> Tensor:
        """Return the saved values on the device and in the dtype of another tensor, rounded if that is narrower."""
        if self.saved.device != like.device:  # the model was moved after freezing
            self.saved, self.look_values = self.saved.to(like.device), self.look_values.to(like.device)
            self.look_indices = self.look_indices.to(like.device)
            self.entries.to(like.device)
            self.here.to(like.device)
        return self.saved.to(like.dtype)

    def write(self) -> None:
        """Put the saved values back."""
        target = self.master()
        self.here.write(target, self.values(target))
        self.stamp = self._stamp()

    def moved(self) -> int:
        """Return how many frozen entries in this process do not hold their saved bits."""
        target = self.master()
        values = self.values(target)  # which moves `here` along
        return count_moved(self.here.select(target), values)

    def seems_moved(self) -> bool:
        """Like `moved`, as it is asked between steps."""
        return self.moved() > 0

    def was_touched(self) -> bool:
        """True if the parameter was written to since the last `write`, as far as autograd counts writes."""
        return self.stamp != self._stamp()

    def look(self) -> tuple[Tensor, Tensor] | None:
        """Return the few entries that are looked at and what they should be, or None where that is not cheap."""
        target = self.master()
        if self.look_values.device != target.device:
            self.values(target)
        return target.index_select(0, self.look_indices), self.look_values.to(target.dtype)

    def moved_in(self, parameter: Tensor) -> int:
        """Return how many entries differ in another copy of the parameter, which may be of a narrower dtype."""
        self.require_same_shards(parameter)
        with self.flat_view(parameter) as flat:
            found = flat.index_select(0, self.entries.indices()[self.part].to(flat.device))
            return count_moved(found, self.saved.to(flat.device))

    def write_to(self, parameter: Tensor) -> None:
        """Put the saved values into another copy of the parameter."""
        self.require_same_shards(parameter)
        if hasattr(parameter, "ds_id"):
            raise FreezeError(f"tensor '{self.name}': restore works on a saved ZeRO-3 model, not on a running one")
        flat = local_flat(parameter.data, f"tensor '{self.name}'")
        bits(flat).scatter_(0, self.entries.indices()[self.part].to(flat.device), bits(self.saved.to(flat)))

    def in_place_of(self, parameter: torch.nn.Parameter, fits: Any) -> Held:
        """Return the same entries held in a parameter that has taken this one's place, sharded perhaps.

        `fits` is not asked, since the values are at hand.

        Raises:
            FreezeError: this one is sharded already, so that the whole values are not at hand.
        """
        if self.is_partial:
            raise FreezeError(f"tensor '{self.name}': was distributed anew after freeze(); freeze after that")
        return Held(self.name, parameter, self.entries.indices().cpu().numpy(), self.copy, self.saved)

    def zero_gradient(self) -> None:
        """Set the gradient of the frozen entries to zero.

        Raises:
            FreezeError: the gradient is sparse.
        """
        gradient = self.parameter.grad
        if gradient is None:
            return
        refuse_sparse(self.name, gradient)
        flat = local_flat(gradient, f"the gradient of tensor '{self.name}'")
        self.entries.to(flat.device)
        self.entries.clear(flat)
        self.gradient_is_clean = True

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


def refuse_sparse(name: str, gradient: Tensor) -> None:
    """Refuse a sparse gradient, of which no entry can be zeroed.

    Raises:
        FreezeError: it is one.
    """
    if gradient.is_sparse:
        raise FreezeError(
            f"tensor '{name}': its gradient is sparse; make the embedding with sparse=False to freeze entries"
        )


def count_moved(found: Tensor, values: Tensor) -> int:
    """Return how many of the entries found differ in bits from `values`, rounded to their dtype."""
    return int((bits(found) != bits(values.to(found.dtype))).sum())
