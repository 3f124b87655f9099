"""Optimizers and wrappers with which frozen entries could not be held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from surgeon.errors import FreezeError
from surgeon.freeze.deepspeed import refuse_without_masters
from surgeon.freeze.hooks import kind_of


def refuse_all(optimizers: Any) -> None:
    """Refuse, of one optimizer, a list of them or none, those that cannot be followed.

    Raises:
        FreezeError: one cannot.
    """
    for optimizer in optimizers if isinstance(optimizers, list | tuple) else [optimizers]:
        if optimizer is None or refuse_without_masters(optimizer) or wraps(optimizer):
            continue
        kind = kind_of(optimizer)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise FreezeError(f"{kind} is no torch.optim.Optimizer, so its steps cannot be followed")
        if not getattr(type(optimizer).step, "hooked", False):
            raise FreezeError(f"{kind} did not call torch.optim.Optimizer.__init__, so its steps cannot be followed")
        refuse_swapping(optimizer)


def wraps(optimizer: Any) -> bool:
    """True for an optimizer that has others inside, which take the steps."""
    return any(hasattr(each, "param_groups") for each in inside(optimizer))


def inside(optimizer: Any) -> Iterator[Any]:
    """Yield the optimizers that one wraps, however deep."""
    known = vars(optimizer) if hasattr(optimizer, "__dict__") else {}
    several = known.get("optimizers", ())
    several = several if isinstance(several, list | tuple) else ()
    for each in (*(known.get(name) for name in ("optimizer", "_optimizer", "base_optimizer", "optim")), *several):
        if each is not None and each is not optimizer:
            yield each
            yield from inside(each)


def refuse_swapping(optimizer: Any) -> None:
    """Refuse a schedule-free optimizer.

    Raises:
        FreezeError: it is one.
    """
    if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)):
        raise FreezeError(
            f"{kind_of(optimizer)} swaps the weights between training and evaluation (schedule-free), outside of its "
            "steps; use an optimizer that leaves the weights alone between steps"
        )


def refuse_flat_parameters(model: torch.nn.Module) -> None:
    """Refuse FSDP1.

    Raises:
        FreezeError: a part of the model is wrapped by it.
    """
    for module in model.modules():
        if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
            raise FreezeError(
                "the model is wrapped by FSDP1, which flattens its parameters; "
                "use FSDP2 (fully_shard, or fsdp_version: 2 in accelerate)"
            )
