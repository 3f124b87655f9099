"""The pair of hooks around every optimizer's step in this process, and the frozen models that they serve."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

if TYPE_CHECKING:
    from surgeon.freeze.frozen import Frozen
    from surgeon.freeze.watch import Watch

_told: weakref.WeakValueDictionary[int, Frozen | Watch] = weakref.WeakValueDictionary()
_hooks: list[Any] = []


def tell(frozen: Frozen | Watch) -> None:
    """Tell a frozen model of every step from now on, for as long as it lives.

    The hooks stay in the process: they do nothing where nothing is frozen.
    """
    _told[id(frozen)] = frozen
    if not _hooks:  # outside of what torch.compile makes of a step
        outside: Any = torch.compiler.disable
        _hooks.append(register_optimizer_step_pre_hook(outside(_before)))
        _hooks.append(register_optimizer_step_post_hook(outside(_after)))


def tell_no_more(frozen: Frozen | Watch) -> None:
    """Tell it of no further step."""
    _told.pop(id(frozen), None)


def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    has_closure = kwargs.get("closure") is not None or any(callable(value) for value in args[1:])
    for frozen in list(_told.values()):
        frozen.before_step(optimizer, has_closure)


def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for frozen in list(_told.values()):
        frozen.after_step(optimizer)


def kind_of(optimizer: Any) -> str:
    """Name an optimizer's class for a message."""
    return f"{type(optimizer).__module__}.{type(optimizer).__name__}"
