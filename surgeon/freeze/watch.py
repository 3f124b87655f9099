"""What is noticed when a module is saved, loaded or copied: the frozen model's modules, and those of its copies.

A watch sits in the state-dict hooks of every module that holds frozen parameters. What is saved through
`state_dict()` is compared first, what `load_state_dict` has brought is compared after. A deep copy of the module, as
weight averaging makes, copies the watch too, and that is how copies are known; so does a pickled one.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surgeon.errors import FreezeError, shorten
from surgeon.freeze.hooks import kind_of, tell, tell_no_more

if TYPE_CHECKING:
    from surgeon.freeze.frozen import Frozen


Slots = Mapping[str, int]  # name of a parameter in a module, and where in `Frozen.held` its entries are


class Watch:
    """Watches one module that holds frozen parameters, or a copy of it.

    In a copy the parameters are others, at the same names. `role` is "model"; "copy" for a deep copy; "twin" for
    another model of the same values that was there already; "followed" for a copy that is made to hold the frozen
    values before it is saved. Without `frozen` (pickled, or let go) nothing is compared.
    """

    def __init__(self, frozen: Frozen | None, module: Any, slots: Slots, role: str) -> None:
        self.frozen, self.slots, self.role = frozen, dict(slots), role
        self.module = None if module is None else weakref.ref(module)
        self.handles: list[Any] = []
        if module is not None and role != "copy":  # whose hooks were copied with it
            self.handles = [
                module.register_state_dict_pre_hook(self.saving),
                module.register_load_state_dict_post_hook(self.loaded),
            ]

    def saving(self, module: torch.nn.Module, prefix: str, keep_vars: bool) -> None:
        """Compare what `state_dict()` is about to return.

        Raises:
            FreezeError: frozen entries hold other values.
        """
        if self.role == "followed":
            self.put_back(module)
        moved = self._moved(module)
        if moved and self.role != "model":
            what = (
                "a deep copy of a frozen model" if self.role == "copy" else "a model that was equal to the frozen one"
            )
            raise FreezeError(
                f"{what} holds other values in {shorten(moved)}, as averaging leaves them; frozen.follow(copy) "
                "keeps them in it, frozen.restore(copy) writes them once, frozen.release(copy) lets it go"
            )
        if moved:
            raise FreezeError(f"not saved: frozen entries have moved, in {shorten(moved)}")

    def loaded(self, module: torch.nn.Module, incompatible: Any) -> None:
        """Compare what `load_state_dict` has brought; a twin that is given other weights is none any more.

        Raises:
            FreezeError: other values for frozen entries.
        """
        if self.role == "twin" and self.frozen is not None:
            self.let_go()
        if self.role != "model":
            return
        moved = self._moved(module)
        if moved:
            raise FreezeError(
                f"load_state_dict has brought other values for frozen entries, in {shorten(moved)}; load before "
                "freeze(), or call frozen.remove() first and frozen.restore() after"
            )

    def parameters(self) -> list[Tensor]:
        """Return the parameters at the frozen names, as the module has them now."""
        module = None if self.module is None else self.module()
        return [] if module is None else [parameter for _, parameter in self._present(module)]

    def before_step(self, optimizer: torch.optim.Optimizer, has_closure: bool) -> None:
        """Refuse to train a model that was frozen when it was pickled.

        Raises:
            FreezeError: the optimizer holds parameters of it.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        judge([parameter for parameter in parameters if parameter.requires_grad], [self], kind_of(optimizer))

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing."""

    def let_go(self) -> None:
        """Do nothing from now on."""
        for handle in self.handles:
            handle.remove()
        if self.frozen is not None:
            self.frozen.copies.discard(self)
        tell_no_more(self)
        self.handles.clear()
        self.slots.clear()
        self.frozen = None

    def put_back(self, module: torch.nn.Module) -> None:
        """Write the frozen values into the module's parameters."""
        frozen = self.frozen
        if frozen is None:
            return
        with torch.no_grad():
            for slot, parameter in self._present(module):
                frozen.held[slot].write_to(parameter)

    def _present(self, module: torch.nn.Module) -> list[tuple[int, Tensor]]:
        found = [(slot, module._parameters.get(name)) for name, slot in self.slots.items()]
        return [(slot, parameter) for slot, parameter in found if parameter is not None]

    def _moved(self, module: torch.nn.Module) -> list[str]:
        frozen = self.frozen
        if frozen is None:
            return []
        names = []
        with torch.no_grad():
            for slot, parameter in self._present(module):
                if self.role == "model" and parameter is not frozen.held[slot].parameter:
                    frozen.follow_model()
                if parameter.device.type == "meta":
                    continue
                item = frozen.held[slot]
                moved = item.moved() if parameter is item.parameter else item.moved_in(parameter)
                if moved and not (self.role == "model" and frozen.mend_at_save(item)):
                    names.append(item.name)
        return names

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        module = None if self.module is None else memo.get(id(self.module()))
        copied = Watch(self.frozen, None, self.slots, "copy")
        copied.module = None if module is None else weakref.ref(module)
        memo[id(self)] = copied
        if self.frozen is not None:
            self.frozen.copies.add(copied)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        module = None if self.frozen is None or self.module is None else self.module()
        return _unpickled, (module, list(self.slots))


def _unpickled(module: torch.nn.Module | None, names: Sequence[str]) -> Watch:
    """Make the watch of a model that was pickled while it was frozen: it says so when it is trained."""
    watch = Watch(None, None, dict.fromkeys(names, 0), "copy")
    if module is not None:
        watch.module = weakref.ref(module)
        tell(watch)
    return watch


def release(copy: torch.nn.Module) -> None:
    """Let a copy of a frozen model, deep or pickled, be a model of its own."""
    for module in copy.modules():
        for hook in list(module._state_dict_pre_hooks.values()):
            watch = getattr(hook, "__self__", None)
            if isinstance(watch, Watch) and watch.role != "model":
                watch.let_go()


def judge(parameters: Iterable[Tensor], copies: Iterable[Watch], kind: str) -> None:
    """Refuse to train a copy in which nothing is frozen; a twin that is trained is a model of its own.

    Raises:
        FreezeError: one of the parameters belongs to a deep copy or an unpickled one.
    """
    ids = {id(parameter) for parameter in parameters}
    for watch in list(copies):
        if ids.isdisjoint(map(id, watch.parameters())):
            continue
        if watch.role == "twin":
            watch.let_go()
        elif watch.role == "copy":
            how = "a copy that was pickled" if watch.frozen is None else "a deep copy"
            raise FreezeError(
                f"{kind} is about to train {how} of a frozen model, in which nothing is frozen: freeze the copy too, "
                "or call surgeon.freeze.release(copy)"
            )


def find_twins(
    frozen: Frozen, model: torch.nn.Module, watched: Mapping[torch.nn.Module, Slots], trained: set[int]
) -> list[Watch]:
    """Watch other models of this process that hold the same frozen values now, such as averages made before freezing.

    They are found by their class, names and shapes. Those with parameters that are `trained` (ids) by an optimizer of
    their own are left alone.
    """
    root, inside = _smallest(model, watched), set(model.modules())
    paths = {path: watched[module] for path, module in root.named_modules() if module in watched}
    found = []
    for other in [each for each in gc.get_objects() if type(each) is type(root)]:
        if other in inside or not trained.isdisjoint(map(id, other.parameters())):
            continue
        modules = dict(other.named_modules())
        pairs = [(modules[path], slots) for path, slots in paths.items() if path in modules]
        if len(pairs) == len(paths) and all(_same(frozen, module, slots) for module, slots in pairs):
            found += [Watch(frozen, module, slots, "twin") for module, slots in pairs]
    return found


def _smallest(model: torch.nn.Module, watched: Mapping[torch.nn.Module, Slots]) -> torch.nn.Module:
    """Return the smallest part of a model that has all modules with frozen parameters: what wrappers wrap."""
    wanted = set(watched)
    while True:
        inner = next((child for child in model.children() if wanted <= set(child.modules())), None)
        if inner is None or model in wanted:
            return model
        model = inner


def _same(frozen: Frozen, module: torch.nn.Module, slots: Slots) -> bool:
    for name, slot in slots.items():
        item, parameter = frozen.held[slot], module._parameters.get(name)
        if parameter is None or parameter is item.parameter or type(parameter) is not type(item.parameter):
            return False
        if parameter.shape != item.parameter.shape or parameter.device.type == "meta":
            return False
        if any(isinstance(getattr(hook, "__self__", None), Watch) for hook in module._state_dict_pre_hooks.values()):
            return False
        with torch.no_grad():
            if not parameter.is_floating_point() or item.moved_in(parameter):
                return False
    return True
