"""Train a few entries only: gradients and moments exist for these alone.

The optimizer is given a short vector instead of the parameter. As soon as a gradient is accumulated, what belongs to
the trained entries is added to the vector's gradient and the rest is dropped; after the step the vector's values are
written into the parameter. Nothing else ever writes to the parameter, so no frozen value is saved; a hash of them
proves it.

The vector is registered beside its parameter, so that whoever clips `model.parameters()` clips it; it is left out of
`state_dict()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surgeon.checkpoint.hashing import sha256
from surgeon.errors import FreezeError
from surgeon.freeze.entries import bits, encode
from surgeon.freeze.held import Held, Owner
from surgeon.freeze.layout import local_flat
from surgeon.region.region import Indices

SUFFIX = "_trained_entries"
MOST = 0.1  # share of trained entries up to which this is done
_PIECE = 1 << 22  # entries that are hashed or compared at a time


class TrainedEntries(Held):
    """A parameter of which a few entries train; all others are frozen, and none of them is kept.

    `vector` is what the optimizer steps on: the trained entries in ascending flat index, shape (trained,).
    """

    def __init__(
        self, name: str, parameter: torch.nn.Parameter, trained: Indices, copy: int, owners: tuple[Owner, ...]
    ) -> None:
        self.name, self.copy, self.parameter, self.owners = name, copy, parameter, owners
        self.part = slice(None)
        self.gradient_is_clean = False
        self.gradient_hook = None
        self.trained = encode(trained, tuple(parameter.shape), parameter.device)
        flat = self.master()
        self.vector = torch.nn.Parameter(self.trained.select(flat), requires_grad=parameter.requires_grad)
        self.entries = self.here = encode(
            self._some_frozen(trained, parameter.numel()), tuple(parameter.shape), parameter.device
        )
        self._keep(self.here.select(flat))
        self.sha256 = self._hash()
        self.total = self._sum()
        self.stamp = self._stamp()
        self._handles = [handle for module, key in owners for handle in self._register(module, key)]

    @property
    def cleans_at_once(self) -> bool:
        """True: the whole gradient is dropped before the next one is there."""
        return True

    @property
    def stepped(self) -> Tensor:
        """The vector that the optimizer holds."""
        return self.vector

    @property
    def count(self) -> int:
        """Number of frozen entries."""
        return self.parameter.numel() - self.trained.count

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken, the vector's values included."""
        return super().nbytes + sum(tensor.nbytes for tensor in (*self.trained.tensors(), self.vector))

    def write(self) -> None:
        """Write the trained values into the parameter."""
        target = self.master()
        self._follow(target)
        self.trained.write(target, self.vector.detach())
        self.stamp = self._stamp()

    def moved(self) -> int:
        """Return 1 if some frozen entry does not hold its bits, as the hash of all of them tells, else 0."""
        return int(self._hash() != self.sha256)

    def seems_moved(self) -> bool:
        """True if the sum of the frozen entries' bits is another: much faster than the hash."""
        return self._sum() != self.total

    def moved_in(self, parameter: Tensor) -> int:
        """Return how many frozen entries differ in another copy of the parameter, which may be narrower."""
        self._require_same_shards(parameter)
        mine, other = self.master(), local_flat(parameter.data, f"tensor '{self.name}'")
        differs = bits(mine.to(other)) != bits(other)
        differs[self.trained.indices().to(differs.device)] = False
        return int(differs.sum())

    def write_to(self, parameter: Tensor) -> None:
        """Put the frozen values into another copy of the parameter."""
        self._require_same_shards(parameter)
        target = local_flat(parameter.data, f"tensor '{self.name}'")
        indices = self.trained.indices().to(target.device)
        kept = target.index_select(0, indices)
        bits(target).copy_(bits(self.master().to(target)))
        bits(target).scatter_(0, indices, bits(kept))

    def zero_gradient(self) -> None:
        """Take what belongs to the trained entries, and drop the gradient.

        Raises:
            FreezeError: the gradient is sparse.
        """
        gradient = self.parameter.grad
        if gradient is None:
            return
        if gradient.is_sparse:
            raise FreezeError(f"tensor '{self.name}': its gradient is sparse; make the embedding with sparse=False")
        taken = self.trained.select(local_flat(gradient, f"the gradient of tensor '{self.name}'"))
        self.vector.grad = taken if self.vector.grad is None else self.vector.grad.add_(taken)
        self.parameter.grad = None
        self.gradient_is_clean = True

    def look_at_gradient(self) -> Tensor | None:
        """Return nothing: no frozen entry has a gradient."""
        return None

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return nothing: no frozen entry has a state."""
        return {}

    def take_over(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer the vector instead of the parameter, and what it knows of it so far."""
        for group in optimizer.param_groups:
            group["params"] = [self.vector if p is self.parameter else p for p in group["params"]]
        known = optimizer.state.pop(self.parameter, None)
        if known:
            optimizer.state[self.vector] = {key: self._taken(value) for key, value in known.items()}
        self.zero_gradient()

    def let_go(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Take the vector out of the model and the optimizers again; its state is dropped."""
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["params"] = [self.parameter if p is self.vector else p for p in group["params"]]
            optimizer.state.pop(self.vector, None)
        for handle in self._handles:
            handle.remove()
        for module, key in self.owners:
            module._parameters.pop(key + SUFFIX, None)

    def _taken(self, value: Any) -> Any:
        whole = isinstance(value, Tensor) and value.shape == self.parameter.shape
        return self.trained.select(value.reshape(-1)) if whole else value

    def _register(self, module: torch.nn.Module, key: str) -> list[Any]:
        """Put the vector beside its parameter, unseen by `state_dict` and refreshed by `load_state_dict`."""
        module.register_parameter(key + SUFFIX, self.vector)

        def leave_out(_: torch.nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
            state.pop(prefix + key + SUFFIX, None)

        def refresh(_: torch.nn.Module, found: Any) -> None:
            found.missing_keys[:] = [name for name in found.missing_keys if not name.endswith(key + SUFFIX)]
            with torch.no_grad():
                self.vector.copy_(self.trained.select(self.master()))

        owner: Any = module
        return [owner._register_state_dict_hook(leave_out), owner.register_load_state_dict_post_hook(refresh)]

    @staticmethod
    def _some_frozen(trained: Indices, numel: int) -> Indices:
        """Return a few frozen entries, to look at before every step."""
        some = np.unique(np.linspace(0, numel - 1, min(numel, 64)).astype(np.int64))
        return np.asarray(np.setdiff1d(some, trained, assume_unique=True))

    def _sum(self) -> int:
        flat = bits(self.master())
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
