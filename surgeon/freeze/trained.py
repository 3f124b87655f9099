"""Train a few entries only: gradients and moments exist for these alone.

While an optimizer steps it holds a short vector instead of the parameter; before and after, its groups and its state
are those of the parameter. The gradient of the parameter keeps what belongs to the trained entries, and the rest is
dropped as soon as it is there. No frozen value is saved, since nothing else writes to the parameter; a hash of them
proves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from surgeon.checkpoint.hashing import sha256
from surgeon.errors import FreezeError
from surgeon.freeze.binding import Bound
from surgeon.freeze.bundle import Bundle
from surgeon.freeze.entries import Entries, bits, encode
from surgeon.freeze.held import Held
from surgeon.freeze.layout import is_distributed, local_flat
from surgeon.freeze.saved import other_values
from surgeon.region.mask import Indices

_PIECE = 1 << 22  # entries that are hashed or compared at a time
# Optimizers whose step is about a matrix as a whole; so is one that calls the model itself.
_NEEDS_MATRIX = ("muon", "shampoo", "soap", "dion", "magma", "demo", "lbfgs")


class ShortGradient(Tensor):
    """A gradient of the parameter's shape of which some entries are kept, the others being zero.

    Norms, scaling, zeroing and accumulating work on the kept ones; any other operation is given the dense tensor.
    """

    kept: Tensor
    entries: Entries

    @staticmethod
    def __new__(cls, kept: Tensor, entries: Entries, like: Tensor) -> ShortGradient:
        """Make one of the shape of `like`."""
        make: Any = Tensor._make_wrapper_subclass
        made: ShortGradient = make(cls, like.shape, dtype=kept.dtype, device=kept.device)
        made.kept, made.entries = kept, entries
        return made

    def dense(self) -> Tensor:
        """Return all entries."""
        flat = torch.zeros(self.numel(), dtype=self.dtype, device=self.device)
        self.entries.write(flat, self.kept)
        return flat.view(self.shape)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Do what can be done on the kept entries there, and all else on the dense tensor."""
        name, first = func._schema.name, args[0]
        if name == "aten::detach":
            return cls(first.kept, first.entries, first)
        if name == "aten::add_" and type(first) is cls and type(args[1]) is Tensor and args[1].shape == first.shape:
            first.kept.add_(first.entries.select(args[1].reshape(-1)), **(kwargs or {}))
            return first
        scaled = name in ("aten::mul_", "aten::div_") and getattr(args[1], "ndim", 0) == 0
        alike = name in ("aten::linalg_vector_norm", "aten::zero_", "aten::_amp_foreach_non_finite_check_and_unscale_")
        result = func(*tree_map(_kept if scaled or alike else _dense, args), **tree_map(_dense, kwargs or {}))
        if name.endswith("_") and type(first) is cls:
            if not scaled and not alike:
                first.kept.copy_(first.entries.select(result.reshape(-1)))
            return first
        return result


def _kept(value: Any) -> Any:
    return value.kept if type(value) is ShortGradient else value


def _dense(value: Any) -> Any:
    return value.dense() if type(value) is ShortGradient else value


class TrainedEntries(Held):
    """A parameter of which a few entries train; all others are frozen, and none of them is kept.

    `vector` is what the optimizer steps on: the trained entries in ascending flat index, shape (trained,).
    """

    cleans_at_once = True  # the whole gradient is dropped before the next one is there

    def __init__(self, name: str, parameter: torch.nn.Parameter, trained: Indices, copy: int = 0) -> None:
        self.name, self.copy, self.parameter = name, copy, parameter
        self.trained = encode(trained, tuple(parameter.shape), parameter.device)
        flat = self.master()
        self.vector = torch.nn.Parameter(self.trained.select(flat))
        self._entered = self.vector.detach().clone()
        self._stepping = False
        some = np.unique(np.linspace(0, parameter.numel() - 1, min(parameter.numel(), 64)).astype(np.int64))
        some = np.asarray(np.setdiff1d(some, trained, assume_unique=True))
        self.entries = self.here = encode(some, tuple(parameter.shape), parameter.device)
        self._keep(self.here.select(flat))
        self.sha256, self.total = self._hash(), self._sum()

    @property
    def count(self) -> int:
        """Number of frozen entries."""
        return self.parameter.numel() - self.trained.count

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken, the vector's values included."""
        return super().nbytes + sum(tensor.nbytes for tensor in (self.trained.kept, self.vector, self._entered))

    def write(self) -> None:
        """Write the trained values into the parameter.

        A step that left them as they were was about something else: it may have been taken on another process.
        """
        if not torch.equal(bits(self.vector.data), bits(self._entered)):
            self.trained.write(self.master(), self.vector.data)
            self.stamp = self._stamp()

    def moved(self) -> int:
        """Return 1 if some frozen entry does not hold its bits, as the hash of all of them tells, else 0."""
        return int(self._hash() != self.sha256)

    def seems_moved(self) -> bool:
        """True if the sum of the frozen entries' bits is another: much faster than the hash."""
        if self.master().dtype != self.vector.dtype:
            raise FreezeError(f"tensor '{self.name}': was converted after freeze(), of which the hash is then another")
        return self._sum() != self.total

    def moved_in(self, parameter: Tensor) -> int:
        """Return how many frozen entries differ in another copy of the parameter, which may be narrower."""
        self.require_same_shards(parameter)
        if parameter.data_ptr() == self.parameter.data_ptr():
            return self.moved()  # what else it could be compared with is kept nowhere
        mine, other = self.master(), local_flat(parameter, f"tensor '{self.name}'")
        shared = min(mine.numel(), other.numel())
        differs = bits(mine[:shared].to(other)) != bits(other[:shared])
        trained = self.trained.indices().to(differs.device)
        differs[trained[trained < shared]] = False
        return int(differs.sum())

    def write_to(self, parameter: Tensor) -> None:
        """Put the frozen values into another copy of the parameter."""
        self.require_same_shards(parameter)
        target = local_flat(parameter, f"tensor '{self.name}'")
        trained = self.trained.on(target.device)
        kept = trained.select(target)
        bits(target).copy_(bits(self.master().to(target)))
        trained.write(target, kept)

    def in_place_of(self, place: Bound, bundle: Bundle) -> Held:
        """Return the same entries held in a parameter that has taken this one's place.

        Raises:
            FreezeError: its frozen entries are others, or cannot be compared.
        """
        parameter = place.parameter
        if not is_distributed(parameter) and not hasattr(parameter, "ds_id") and parameter.dtype == self.vector.dtype:
            made = TrainedEntries(self.name, parameter, self.trained.indices().cpu().numpy(), self.copy)
            if made.sha256 == self.sha256:
                return made
        reason = other_values(bundle, self.name, place)
        if reason is not None:
            raise FreezeError(f"tensor '{self.name}': {reason}")
        return self.all_kept(parameter)

    def all_kept(self, parameter: torch.nn.Parameter) -> Held:
        """Return the same entries with all their values kept, as a parameter has them that trains as a whole."""
        frozen = np.delete(np.arange(parameter.numel(), dtype=np.int64), self.trained.indices().cpu().numpy())
        return Held(self.name, parameter, frozen, self.copy)

    def zero_gradient(self) -> None:
        """Take what belongs to the trained entries, and drop the rest of the gradient.

        Raises:
            FreezeError: the gradient is sparse.
        """
        gradient = self.parameter.grad
        self.gradient_is_clean = True
        if gradient is None or type(gradient) is ShortGradient:
            return
        flat = self.flat_gradient(gradient)
        self.trained = self.trained.on(flat.device)
        taken = self.trained.select(flat)
        if self._stepping:  # the optimizer, which calls the model itself, looks at the vector
            self.vector.grad = taken if self.vector.grad is None else self.vector.grad.add_(taken)
            self.parameter.grad = None
        elif torch.distributed.is_initialized():  # where it is reduced whole
            gradient.zero_()
            self.trained.write(flat, taken)
        else:
            self.parameter.grad = ShortGradient(taken, self.trained, self.parameter)

    def enter(self) -> None:
        """Prepare the vector for a step."""
        if self._stepping:
            return
        flat, gradient = self.master(), self.parameter.grad
        self.trained = self.trained.on(flat.device)
        self.vector.data = self.trained.select(flat)
        self._entered = self.vector.data.clone()
        if gradient is not None and type(gradient) is not ShortGradient:
            gradient = ShortGradient(self.trained.select(gradient.reshape(-1)), self.trained, self.parameter)
        self.vector.grad = gradient.kept if isinstance(gradient, ShortGradient) else None
        self.parameter.grad, self._stepping = None, True

    def leave(self) -> None:
        """Give the gradient back after a step."""
        if self._stepping and self.vector.grad is not None:
            self.parameter.grad = ShortGradient(self.vector.grad, self.trained, self.parameter)
        self.vector.grad, self._stepping = None, False

    def let_go(self, optimizers: Iterable[Optimizer]) -> None:
        """Make the gradient, and what optimizers know, whole: zeros but for the trained entries."""
        if type(self.parameter.grad) is ShortGradient:
            self.parameter.grad = self.parameter.grad.dense()
        for optimizer in optimizers:
            for key, value in optimizer.state.get(self.parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == self.vector.shape:
                    optimizer.state[self.parameter][key] = ShortGradient(value, self.trained, self.parameter).dense()

    def state_of_vector(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return an optimizer's state of the parameter as one of the vector."""
        shape = self.parameter.shape
        return {
            key: self.trained.select(value.reshape(-1)) if isinstance(value, Tensor) and value.shape == shape else value
            for key, value in state.items()
        }

    def _sum(self) -> int:
        flat = bits(self.master())
        self.trained = self.trained.on(flat.device)  # the model may have been moved
        return int(flat.sum(dtype=torch.int64)) - int(self.trained.select(flat).sum(dtype=torch.int64))

    def _hash(self) -> str:
        """Hash the frozen entries as they are now, in ascending flat index."""
        flat = bits(self.master().cpu())
        trained = self.trained.indices().cpu()
        hashes = []
        for start in range(0, flat.numel(), _PIECE):
            piece = flat[start : start + _PIECE]
            first, last = torch.searchsorted(trained, torch.tensor([start, start + piece.numel()])).tolist()
            keep = np.ones(piece.numel(), dtype=np.bool_)
            keep[(trained[first:last] - start).numpy()] = False
            hashes.append(sha256(piece.numpy()[keep].tobytes()))
        return sha256("".join(hashes).encode())


def needs_whole(optimizer: Optimizer, has_closure: bool) -> bool:
    """True if an optimizer cannot step on vectors: it is about matrices, or calls a model that others wait for."""
    name = type(optimizer).__name__.lower()
    return any(word in name for word in _NEEDS_MATRIX) or (has_closure and torch.distributed.is_initialized())


def swap_in(optimizer: Optimizer, items: Sequence[TrainedEntries]) -> None:
    """Give an optimizer the vectors for the parameters, with what it knows of these."""
    for item in items:
        item.enter()
    _exchange(optimizer, {id(item.parameter): item.vector for item in items})
    for item in items:
        known = optimizer.state.pop(item.parameter, None)
        if known:
            optimizer.state[item.vector] = item.state_of_vector(known)


def swap_out(optimizer: Optimizer, items: Sequence[TrainedEntries]) -> None:
    """Undo `swap_in`; what the optimizer knows of a vector is then known of its parameter."""
    _exchange(optimizer, {id(item.vector): item.parameter for item in items})
    for item in items:
        known = optimizer.state.pop(item.vector, None)
        if known:
            optimizer.state[item.parameter] = known
        item.leave()


def _exchange(optimizer: Optimizer, others: Mapping[int, Tensor]) -> None:
    for group in optimizer.param_groups:
        group["params"][:] = [others.get(id(parameter), parameter) for parameter in group["params"]]


def short_ones(items: Iterable[Held]) -> list[TrainedEntries]:
    """Return those whose optimizers are given short vectors."""
    return [item for item in items if isinstance(item, TrainedEntries)]
