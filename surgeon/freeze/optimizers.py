"""The optimizers of this process: a pair of hooks around every step of each, and those that cannot be followed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from surgeon.errors import FreezeError


class Listener(Protocol):
    """What is told of every step of every optimizer."""

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Look at what the optimizer is about to change."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Mend what it has changed."""


_told: weakref.WeakValueDictionary[int, Listener] = weakref.WeakValueDictionary()
_hooks: list[Any] = []


def tell(listener: Listener) -> None:
    """Tell somebody of every step from now on, for as long as it lives.

    The hooks stay in the process: they do nothing where nobody is told.
    """
    _told[id(listener)] = listener
    if not _hooks:  # outside of what torch.compile makes of a step
        outside: Any = torch.compiler.disable
        _hooks.append(register_optimizer_step_pre_hook(outside(_before)))
        _hooks.append(register_optimizer_step_post_hook(outside(_after)))


def tell_no_more(listener: Listener) -> None:
    """Tell it of no further step."""
    _told.pop(id(listener), None)


def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    has_closure = kwargs.get("closure") is not None or any(callable(value) for value in args[1:])
    for listener in list(_told.values()):
        listener.before_step(optimizer, has_closure)


def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for listener in list(_told.values()):
        listener.after_step(optimizer)


def parameters_of(optimizer: Optimizer) -> list[torch.Tensor]:
    """Return all parameters that an optimizer holds."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def kind_of(optimizer: Any) -> str:
    """Name an optimizer's class for a message."""
    return f"{type(optimizer).__module__}.{type(optimizer).__name__}"


def refuse_unknown(optimizers: Any) -> None:
    """Refuse, of one optimizer, a list of them or none, those that cannot be followed.

    Raises:
        FreezeError: one cannot.
    """
    for optimizer in optimizers if isinstance(optimizers, list | tuple) else [optimizers]:
        if optimizer is None or wraps(optimizer):
            continue
        kind = kind_of(optimizer)
        if not isinstance(optimizer, Optimizer):
            raise FreezeError(f"{kind} is no torch.optim.Optimizer, so its steps cannot be followed")
        if not getattr(type(optimizer).step, "hooked", False):
            raise FreezeError(f"{kind} did not call torch.optim.Optimizer.__init__, so its steps cannot be followed")
        refuse_swapping(optimizer)


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


def wraps(optimizer: Any) -> bool:
    """True for an optimizer that has others inside, which take the steps."""
    return any(hasattr(each, "param_groups") for each in _inside(optimizer))


def _inside(optimizer: Any) -> Iterator[Any]:
    known = vars(optimizer) if hasattr(optimizer, "__dict__") else {}
    several = known.get("optimizers", ())
    several = several if isinstance(several, list | tuple) else ()
    for each in (*(known.get(name) for name in ("optimizer", "_optimizer", "base_optimizer", "optim")), *several):
        if each is not None and each is not optimizer:
            yield each
            yield from _inside(each)
