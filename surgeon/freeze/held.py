"""One frozen parameter: its frozen entries, their values, and what is done to them.

All writes and comparisons go through integers of the same width, so that they are about bits: a NaN equals
itself and a negative zero is not zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from surgeon.errors import FreezeError
from surgeon.freeze.entries import SHORT, bits, encode
from surgeon.freeze.layout import (
    PLAIN,
    is_first_replica,
    is_plain,
    local_flat,
    local_indices,
    local_shape,
    shape_of,
    whole_flat,
)
from surgeon.region.region import Indices

_NARROWER = {torch.float32: (torch.bfloat16, torch.float16), torch.float64: (torch.bfloat16, torch.float32)}
_LOOKED_AT = 8  # entries of a parameter that are looked at before every step, and the outermost ones
Owner = tuple[torch.nn.Module, str]  # a module, and the name under which it holds a parameter


class Held:
    """The frozen entries of one parameter in this process.

    `entries` are flat indices into what this process holds of the parameter and of its gradient; `part` is the
    slice of them whose master weights are here, `here` their indices in `master()`, and `saved` their values, in the
    narrowest dtype that holds them exactly, on the parameter's device. `copy` counts the parameters that an untied
    model has under the names of one tensor; `owners` are the modules that hold the parameter.
    """

    def __init__(
        self, name: str, parameter: torch.nn.Parameter, indices: Indices, copy: int = 0, owners: tuple[Owner, ...] = ()
    ) -> None:
        self.name = name
        self.copy = copy
        self.parameter = parameter
        self.owners = owners
        self.part = slice(None)
        self.gradient_is_clean = False
        self.gradient_hook: RemovableHandle | None = None
        mine = local_indices(parameter, indices, f"tensor '{name}'")
        self.entries = self.here = encode(mine, local_shape(parameter), parameter.device)
        with self.flat_view(parameter) as flat:
            self._keep(self.entries.select(flat))
        self.stamp = self._stamp()

    def _keep(self, values: Tensor) -> None:
        """Save values, and choose which of them are looked at before every step: the outermost ones, and some more.

        Whatever clamps, scales, rounds or prunes a tensor changes one of these.
        """
        self.saved, self.dtype = values, values.dtype
        for narrow in _NARROWER.get(values.dtype, ()) if values.numel() > SHORT else ():
            if torch.equal(bits(values.to(narrow).to(values.dtype)), bits(values)):
                self.saved = values.to(narrow)
                break
        spread = torch.linspace(0, max(0, values.numel() - 1), min(_LOOKED_AT, values.numel())).long()
        finite = values.float().nan_to_num()
        outermost = [finite.argmin(), finite.argmax(), finite.abs().argmin()] if values.numel() else []
        looked_at = torch.unique(torch.cat([spread.to(values.device), *(at.view(1) for at in outermost)]))
        self.look_indices = self.here.indices()[looked_at]
        self.look_bits = bits(values[looked_at])

    @property
    def stepped(self) -> Tensor:
        """What the optimizer holds: the parameter."""
        return self.parameter

    @property
    def count(self) -> int:
        """Number of frozen entries whose masters are in this process."""
        return self.saved.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken."""
        kept = {*self.entries.tensors(), *self.here.tensors(), self.saved, self.look_indices, self.look_bits}
        return sum(tensor.nbytes for tensor in kept)

    @property
    def cleans_at_once(self) -> bool:
        """True if the gradient must be clean as soon as it is there, not only when the backward pass is through."""
        return False

    @property
    def is_partial(self) -> bool:
        """True if this process holds a part of the parameter only (FSDP2)."""
        return hasattr(self.parameter, "to_local")

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

    def values(self) -> Tensor:
        """Return the saved values in the dtype of the master weights."""
        return self.saved if self.saved.dtype == self.dtype else self.saved.to(self.dtype)

    def write(self) -> None:
        """Put the saved values back."""
        target = self.master()
        self._follow(target)
        self.here.write(target, self.values())
        self.stamp = self._stamp()

    def moved(self) -> int:
        """Return how many frozen entries in this process do not hold their saved bits."""
        target = self.master()
        self._follow(target)
        return count_moved(self.here.select(target), self.values())

    def seems_moved(self) -> bool:
        """Like `moved`, as it is asked between steps."""
        return self.moved() > 0

    def was_touched(self) -> bool:
        """True if the parameter was written to since the last `write`, as far as autograd counts writes."""
        return self.stamp != self._stamp()

    def look(self) -> Tensor | None:
        """Return the few entries that `look_bits` tells of, or None where that is not cheap."""
        target = self.master()
        self._follow(target)
        return target.index_select(0, self.look_indices)

    def moved_in(self, parameter: Tensor) -> int:
        """Return how many entries differ in another copy of the parameter, which may be of a narrower dtype."""
        self._require_same_shards(parameter)
        with self.flat_view(parameter) as flat:
            found = flat.index_select(0, self._indices_here().to(flat.device))
            return count_moved(found, self.values().to(flat.device))

    def write_to(self, parameter: Tensor) -> None:
        """Put the saved values into another copy of the parameter."""
        self._require_same_shards(parameter)
        if hasattr(parameter, "ds_id"):
            raise FreezeError(f"tensor '{self.name}': restore works on a saved ZeRO-3 model, not on a running one")
        with self.flat_view(parameter) as flat:
            bits(flat).scatter_(0, self._indices_here().to(flat.device), bits(self.values().to(flat)))

    def zero_gradient(self) -> None:
        """Set the gradient of the frozen entries to zero.

        Raises:
            FreezeError: the gradient is sparse.
        """
        gradient = self.parameter.grad
        if gradient is None:
            return
        if gradient.is_sparse:
            raise FreezeError(
                f"tensor '{self.name}': its gradient is sparse; make the embedding with sparse=False to freeze entries"
            )
        flat = local_flat(gradient, f"the gradient of tensor '{self.name}'")
        self.entries.to(flat.device)
        self.entries.clear(flat)
        self.gradient_is_clean = True

    def look_at_gradient(self) -> Tensor | None:
        """Return the gradient of the few entries that are looked at, None if there is no gradient."""
        gradient = self.parameter.grad
        if gradient is None or self.part != slice(None):
            return None
        flat = local_flat(gradient, f"the gradient of tensor '{self.name}'")
        return flat.index_select(0, self.look_indices.to(flat.device))

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return, flat like `master()`, what of an optimizer's state has an entry for each entry of the parameter.

        State that is quantized (low-bit optimizers) is left out: no view of it is an entry.
        """
        return {
            key: local_flat(value, f"{key} of tensor '{self.name}'")
            for key, value in optimizer.state.get(self.parameter, {}).items()
            if isinstance(value, Tensor) and value.shape == self.parameter.shape and is_plain(value)
        }

    def is_replaced(self) -> bool:
        """True if a module that held the parameter holds another one under its name."""
        return any(module._parameters.get(name) is not self.parameter for module, name in self.owners)

    def _indices_here(self) -> Tensor:
        return self.entries.indices()[self.part]

    def _stamp(self) -> tuple[int, int]:
        parameter = self.parameter
        known = type(parameter) in PLAIN or not self.is_partial
        return parameter._version, parameter.data_ptr() if known else 0

    def _follow(self, target: Tensor) -> None:
        if target.device != self.saved.device:  # the model was moved after freezing
            self.saved, self.look_bits = self.saved.to(target.device), self.look_bits.to(target.device)
            self.look_indices = self.look_indices.to(target.device)
            self.entries.to(target.device)
            self.here.to(target.device)
        if target.dtype != self.dtype:
            raise FreezeError(
                f"tensor '{self.name}': was {self.dtype} when it was frozen and is {target.dtype} now; "
                "convert the model first and freeze it then"
            )

    def _require_same_shards(self, other: Tensor) -> None:
        mine, theirs = (getattr(parameter, "placements", None) for parameter in (self.parameter, other))
        if mine != theirs or shape_of(self.parameter) != shape_of(other):
            raise FreezeError(
                f"tensor '{self.name}': the other model is not distributed as the frozen one; save it and use "
                "verify_saved"
            )


def count_moved(found: Tensor, values: Tensor) -> int:
    """Return how many of the entries found differ in bits from `values`, rounded to their dtype."""
    return int((bits(found) != bits(values.to(found.dtype))).sum())
