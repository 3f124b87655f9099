"""What is noticed away from an attached optimizer's steps: saving, loading, deep copies, other optimizers' steps.

A watch sits in the state-dict hooks of every module that holds frozen parameters. What is saved through
`state_dict()` is compared first, what `load_state_dict` has brought is compared after. A deep copy of the module,
as weight averaging makes, copies the watch too, and that is how copies are known.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from surgeon.errors import FreezeError, shorten
from surgeon.freeze.held import Held


class Stepping(Protocol):
    """What a watch needs of a `Frozen`: the copies it knows of, and its look at an optimizer about to step."""

    copies: weakref.WeakSet[Watch]

    def see_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse the step if it would break the promise."""


Part = tuple[Held, str]  # a frozen parameter, and its name in the module

_frozen: weakref.WeakSet[Stepping] = weakref.WeakSet()  # those whose hooks are on
_hook: list[Any] = []


class Watch:
    """Watches one module that holds frozen parameters, or a copy of it.

    In a copy (`is_copy`) the parameters are others, at the same names; `puts_back` says that they are to be made to
    hold the frozen values before they are saved. Without `frozen` (pickled, or let go) it does nothing.
    """

    def __init__(
        self, frozen: Stepping | None, module: torch.nn.Module | None, parts: Sequence[Part], **roles: bool
    ) -> None:
        self.frozen = frozen
        self.module = None if module is None else weakref.ref(module)
        self.parts = list(parts)
        self.is_copy = roles.get("is_copy", False)
        self.puts_back = roles.get("puts_back", False)
        self.handles = [] if module is None or (self.is_copy and not self.puts_back) else self._register(module)

    def _register(self, module: Any) -> list[Any]:
        return [
            module.register_state_dict_pre_hook(self.saving),
            module.register_load_state_dict_post_hook(self.loaded),
        ]

    def saving(self, module: torch.nn.Module, prefix: str, keep_vars: bool) -> None:
        """Compare what `state_dict()` is about to return.

        Raises:
            FreezeError: frozen entries hold other values.
        """
        if self.frozen is None:
            return
        if self.puts_back:
            self.put_back(module)
        moved = self._moved(module)
        if moved and self.is_copy:
            raise FreezeError(
                f"a deep copy of a frozen model holds other values in {shorten(moved)}, as averaging leaves them; "
                "frozen.follow(copy) keeps them in it, frozen.restore(copy) writes them once, frozen.release(copy) "
                "lets it go"
            )
        if moved:
            raise FreezeError(f"not saved: frozen entries have moved, in {shorten(moved)}")

    def loaded(self, module: torch.nn.Module, incompatible: Any) -> None:
        """Compare what `load_state_dict` has brought.

        Raises:
            FreezeError: other values for frozen entries.
        """
        if self.frozen is None or self.is_copy:
            return
        moved = self._moved(module)
        if moved:
            raise FreezeError(
                f"load_state_dict has brought other values for frozen entries, in {shorten(moved)}; load before "
                "freeze(), or call frozen.remove() first and frozen.restore() after"
            )

    def current(self) -> list[tuple[Tensor, Part]]:
        """Return the parameters at the frozen names, as the module has them now."""
        module = None if self.module is None else self.module()
        found = [] if module is None else [(module._parameters.get(part[1]), part) for part in self.parts]
        return [(parameter, part) for parameter, part in found if parameter is not None]

    def let_go(self) -> None:
        """Do nothing from now on."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.frozen = None
        self.parts.clear()

    def put_back(self, module: torch.nn.Module) -> None:
        """Write the frozen values into the module's parameters."""
        with torch.no_grad():
            for item, name in self.parts:
                parameter = module._parameters.get(name)
                if parameter is not None:
                    item.write_to(parameter)

    def _moved(self, module: torch.nn.Module) -> list[str]:
        with torch.no_grad():
            return [item.name for item, name in self.parts if self._differs(item, module._parameters.get(name))]

    def _differs(self, item: Held, parameter: Tensor | None) -> bool:
        if parameter is item.parameter:
            return bool(item.moved())
        if not self.is_copy:
            return True  # replaced: nothing holds it
        return parameter is not None and parameter.device.type != "meta" and bool(item.moved_in(parameter))

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        module = None if self.module is None else memo.get(id(self.module()))
        copied = Watch(self.frozen, None, self.parts, is_copy=True)
        copied.module = None if module is None else weakref.ref(module)
        memo[id(self)] = copied
        if self.frozen is not None:
            self.frozen.copies.add(copied)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return Watch, (None, None, ())


def release(copy: torch.nn.Module) -> None:
    """Let a deep copy of a frozen model be a model of its own."""
    for module in copy.modules():
        for hook in list(module._state_dict_pre_hooks.values()):
            watch = getattr(hook, "__self__", None)
            if isinstance(watch, Watch) and watch.is_copy:
                if watch.frozen is not None:
                    watch.frozen.copies.discard(watch)
                watch.let_go()


def watch_steps(frozen: Stepping) -> None:
    """Have every optimizer's step looked at while `frozen` has its hooks on."""
    _frozen.add(frozen)
    if not _hook:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        _hook.append(register_optimizer_step_pre_hook(_before_any_step))


def unwatch_steps(frozen: Stepping) -> None:
    """Look no more on its behalf."""
    _frozen.discard(frozen)
    if not _frozen and _hook:
        _hook.pop().remove()


def _before_any_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for frozen in list(_frozen):
        frozen.see_step(optimizer)


def refuse_stranger(optimizer: torch.optim.Optimizer, originals: Mapping[int, str], copies: set[int]) -> None:
    """Refuse a step of an optimizer that is not attached if it trains a frozen parameter, or a copy of one.

    Raises:
        FreezeError: it does.
    """
    kind = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
    ids = [id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    trained = [originals[number] for number in ids if number in originals]
    if trained:
        raise FreezeError(
            f"{kind} is about to change {shorten(trained)}, which is frozen, and is not attached: attach every "
            "optimizer that trains the model, the one inside a wrapper such as SAM too, before the first step"
        )
    if copies.intersection(ids):
        raise FreezeError(
            f"{kind} is about to train a deep copy of a frozen model, in which nothing is frozen: freeze the copy too, "
            "or call frozen.release(copy)"
        )
