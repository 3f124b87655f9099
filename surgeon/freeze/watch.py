"""What is noticed when a module is saved, loaded or copied: the frozen model's modules, and those of its copies.

A watch sits in the state-dict hooks of every module that holds frozen parameters. What is saved through
`state_dict()` is compared first, what `load_state_dict` has brought is compared after. A deep copy of the module, as
weight averaging makes, copies the watch too, and that is how copies are known; so does a pickled one.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from surgeon.errors import FreezeError, shorten
from surgeon.freeze.held import Held
from surgeon.freeze.hooks import kind_of, parameters_of, tell, tell_no_more

Slots = Mapping[str, int]  # name of a parameter in a module, and where in `held` its entries are


class Owner(Protocol):
    """What a watch knows of the frozen model: the entries, all watches of copies, and how to look for replacements."""

    held: list[Held]
    copies: weakref.WeakSet[Watch]

    def follow_model(self) -> bool:
        """Hold the entries in what has taken a frozen parameter's place."""


class Watch:
    """Watches one module that holds frozen parameters, or a copy of it.

    In a copy the parameters are others, at the same names. `role` is "model"; "copy" for a deep copy; "twin" for
    another model of the same values that was there already; "followed" for a copy that is made to hold the frozen
    values before it is saved. Without `owner` (pickled, or let go) nothing is compared.
    """

    def __init__(self, owner: Owner | None, module: Any, slots: Slots, role: str) -> None:
        self.owner, self.slots, self.role = owner, dict(slots), role
        self.module: Callable[[], Any] = (lambda: None) if module is None else weakref.ref(module)
        self.handles: list[Any] = []
        if role != "copy":  # whose hooks were copied with it
            self.handles = [
                module.register_state_dict_pre_hook(self.saving),
                module.register_load_state_dict_post_hook(self.loaded),
            ]
        if owner is not None and role != "model":
            owner.copies.add(self)

    def saving(self, module: torch.nn.Module, prefix: str, keep_vars: bool) -> None:
        """Compare what `state_dict()` is about to return.

        Raises:
            FreezeError: frozen entries hold other values.
        """
        if self.role == "followed":
            self.put_back()
        moved = self._moved(module)
        if moved and self.role == "model":
            raise FreezeError(f"not saved: frozen entries have moved, in {shorten(moved)}")
        if moved:
            what = (
                "a deep copy of a frozen model" if self.role == "copy" else "a model that was equal to the frozen one"
            )
            raise FreezeError(
                f"{what} holds other values in {shorten(moved)}, as averaging leaves them; frozen.follow(copy) "
                "keeps them in it, frozen.restore(copy) writes them once, frozen.release(copy) lets it go"
            )

    def loaded(self, module: torch.nn.Module, incompatible: Any) -> None:
        """Compare what `load_state_dict` has brought; a twin that is given other weights is none any more.

        Raises:
            FreezeError: other values for frozen entries.
        """
        if self.role == "twin":
            self.let_go()
        moved = self._moved(module) if self.role == "model" else []
        if moved:
            raise FreezeError(
                f"load_state_dict has brought other values for frozen entries, in {shorten(moved)}; load before "
                "freeze(), or call frozen.remove() first and frozen.restore() after"
            )

    def before_step(self, optimizer: torch.optim.Optimizer, has_closure: bool = False) -> None:
        """Refuse to train a copy in which nothing is frozen; a twin that is trained is a model of its own.

        A pickled copy is told of every step; of others asks the frozen model.

        Raises:
            FreezeError: the optimizer trains parameters of a copy, deep or pickled.
        """
        trained = {id(parameter) for parameter in parameters_of(optimizer) if parameter.requires_grad}
        if trained.isdisjoint(id(parameter) for _, parameter in self._present(self.module())):
            return
        if self.role == "twin":
            self.let_go()
        elif self.role == "copy":
            how = "a copy that was pickled" if self.owner is None else "a deep copy"
            raise FreezeError(
                f"{kind_of(optimizer)} is about to train {how} of a frozen model, in which nothing is frozen: freeze "
                "the copy too, or call surgeon.freeze.release(copy)"
            )

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing."""

    def let_go(self) -> None:
        """Do nothing from now on."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.slots.clear()
        tell_no_more(self)
        if self.owner is not None:
            self.owner.copies.discard(self)
        self.owner = None

    def put_back(self) -> None:
        """Write the frozen values into the module's parameters."""
        if self.owner is not None:
            with torch.no_grad():
                for slot, parameter in self._present(self.module()):
                    self.owner.held[slot].write_to(parameter)

    def _present(self, module: torch.nn.Module | None) -> list[tuple[int, Tensor]]:
        known = {} if module is None else module._parameters
        found = [(slot, known.get(name)) for name, slot in self.slots.items()]
        return [(slot, parameter) for slot, parameter in found if parameter is not None]

    def _moved(self, module: torch.nn.Module) -> list[str]:
        """Name the tensors that have moved; shards are mended, since raising in one process leaves others waiting."""
        owner, is_model, names = self.owner, self.role == "model", []
        if owner is None:
            return []
        with torch.no_grad():
            for slot, parameter in self._present(module):
                if is_model and parameter is not owner.held[slot].parameter:
                    owner.follow_model()
                item = owner.held[slot]
                if parameter.device.type == "meta":
                    continue
                moved = item.moved() if parameter is item.parameter else item.moved_in(parameter)
                if moved and is_model and item.is_partial:
                    item.mend()
                elif moved:
                    names.append(item.name)
        return names

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        memo[id(self)] = copied = Watch(self.owner, memo.get(id(self.module())), self.slots, "copy")
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (None if self.owner is None else self.module(), list(self.slots))


def _unpickled(module: torch.nn.Module | None, names: Sequence[str]) -> Watch:
    """Make the watch of a model that was pickled while it was frozen: it says so when it is trained."""
    watch = Watch(None, module, dict.fromkeys(names, 0), "copy")
    tell(watch)
    return watch


def watches_on(model: torch.nn.Module) -> list[Watch]:
    """Return the watches that sit on a model's modules, also those of a model that it is a copy of."""
    hooks = [hook for module in model.modules() for hook in module._state_dict_pre_hooks.values()]
    return [watch for hook in hooks if isinstance(watch := getattr(hook, "__self__", None), Watch)]


def release(copy: torch.nn.Module) -> None:
    """Let a copy of a frozen model, deep or pickled, be a model of its own."""
    for watch in watches_on(copy):
        if watch.role != "model":
            watch.let_go()


def watch_twins(
    owner: Owner, model: torch.nn.Module, watched: Mapping[torch.nn.Module, Slots], trained: set[int]
) -> None:
    """Watch other models of this process that hold the same frozen values now, such as averages made before freezing.

    They are found by their class, names and shapes. Those with parameters that are `trained` (ids) by an optimizer of
    their own are left alone.
    """
    root, inside = _smallest(model, set(watched)), set(model.modules())
    paths = {path: watched[module] for path, module in root.named_modules() if module in watched}
    for other in [each for each in gc.get_objects() if type(each) is type(root) and each not in inside]:
        modules = dict(other.named_modules())
        pairs = [(modules.get(path), slots) for path, slots in paths.items()]
        if trained.isdisjoint(map(id, other.parameters())) and all(_is_same(owner, *pair) for pair in pairs):
            for module, slots in pairs:
                Watch(owner, module, slots, "twin")


def _smallest(model: torch.nn.Module, wanted: set[torch.nn.Module]) -> torch.nn.Module:
    """Return the smallest part of a model that has all modules with frozen parameters: what wrappers wrap."""
    while model not in wanted:
        inner = next((child for child in model.children() if wanted <= set(child.modules())), None)
        if inner is None:
            break
        model = inner
    return model


def _is_same(owner: Owner, module: torch.nn.Module | None, slots: Slots) -> bool:
    if module is None or watches_on(module):
        return False
    for name, slot in slots.items():
        item, parameter = owner.held[slot], module._parameters.get(name)
        mine = item.parameter
        if parameter is None or parameter is mine or (type(parameter), parameter.shape) != (type(mine), mine.shape):
            return False
        if parameter.device.type == "meta" or not parameter.is_floating_point() or item.moved_in(parameter):
            return False
    return True
