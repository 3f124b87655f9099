"""The `Frozen` object, which keeps the promise of `freeze` and proves it.

The promise: after every step of an optimizer the frozen entries of the weights that it changes hold their original
bits. Nothing is attached. A pair of hooks around every step of every optimizer of the process looks before it at
those frozen parameters that the optimizer holds, and writes the saved values back after it, because weight decay,
momentum and stochastic rounding move entries that have no gradient. The gradients of frozen entries are set to zero
when a backward pass is through, so that they do not inflate the norm that gradients are clipped by.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import torch
from torch.optim import Optimizer

from surgeon.errors import FreezeError, shorten
from surgeon.freeze.binding import bind
from surgeon.freeze.bundle import Bundle
from surgeon.freeze.deepspeed import is_elsewhere, with_master
from surgeon.freeze.held import Held, first_that_differs, sum_over_processes
from surgeon.freeze.hooks import Gradients, parameters_of, refuse_swapping, tell, tell_no_more, wraps
from surgeon.freeze.layout import is_distributed
from surgeon.freeze.trained import TrainedEntries, needs_whole, short_ones, swap_in, swap_out
from surgeon.freeze.watch import Watch, release, watch_twins

EVERY = 32  # steps of a parameter within which all its frozen entries are compared once
PASSES = 16  # backward passes in a row after which entries that have moved are no perturbation
_FIRST_STEPS = 2  # in which they are compared each time


class Frozen:
    """The frozen entries of a model; made by `freeze`. It lives as long as the model, whether anybody keeps it or not.

    `tensors` names, as in the bundle, the tensors that have frozen entries; `skipped` maps those that could not be
    frozen (with `strict=False`) to the reason. `held` has an item per parameter, `copies` the watches of copies.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: torch.nn.Module,
        held: list[Held],
        tensors: Sequence[str],
        skipped: Mapping[str, str],
    ) -> None:
        self.bundle, self.held = bundle, [with_master(item) for item in held]
        self.tensors, self.skipped = list(tensors), dict(skipped)
        self.copies: weakref.WeakSet[Watch] = weakref.WeakSet()
        self._model = model
        self._is_on = True
        self._gradients = Gradients(self._look_after_pass)
        self._watches: dict[torch.nn.Module, Watch] = {}
        self._open: dict[int, list[Held]] = {}  # by id of the optimizer whose step is under way
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # that stepped on a few entries only
        self._known: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()  # others, by id
        self._looked_for_twins = False
        self._passes_moved = 0  # backward passes in a row, without a step, that found entries moved
        release(model)
        for item in self.held:
            if item.parameter.requires_grad:
                self._gradients.hook(item)
        self._index()
        tell(self)

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} tensors skipped" if self.skipped else ""
        off = "" if self._is_on else ", removed"
        return f"Frozen({self.entries:,} entries in {len(self.tensors)} tensors{skipped}{off})"

    @property
    def entries(self) -> int:
        """Number of entries frozen in this process; under sharding, its share."""
        return sum(item.count for item in self.held)

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken in this process: the saved values, and where they belong."""
        return sum(item.nbytes for item in self.held)

    def verify(self, model: torch.nn.Module | None = None) -> int:
        """Check that every frozen entry holds its original bits; returns how many were checked.

        Looks at the weights that the model has now, or at those of `model` (another wrapper of it, or a checkpoint that
        was saved and loaded again; its dtype may be narrower). Where parameters are sharded, every process must call
        it; entries that several processes hold are counted once.

        Raises:
            FreezeError: entries have moved, or the model has no parameters any more that they could be in.
        """
        with torch.no_grad():
            if model is None:
                self.follow_model()
                moved = [item.moved() or int(item.was_mended) for item in self.held]
            else:
                moved = [item.moved_in(parameter) for item, parameter in self._partners(model)]
        checked = self.entries
        if any(item.is_partial for item in self.held) and torch.distributed.is_initialized():
            moved, checked = sum_over_processes(self.held, moved)
        for item in self.held:
            item.was_mended = False
        names = [item.name for item, count in zip(self.held, moved, strict=True) if count]
        if names:
            raise FreezeError(f"{sum(moved)} of {checked} frozen entries have moved, in {shorten(names)}")
        return checked

    def restore(self, model: torch.nn.Module | None = None) -> int:
        """Write the saved values back, into `model` if given; returns the number of entries.

        On a model that was trained freely this is post-hoc reversion: the base inside the region, the trained
        weights outside.

        Raises:
            FreezeError: `model` lacks one of the tensors, or is sharded in another way; or nothing was saved, since
                only a few entries train (`train_only`).
        """
        if model is None and short_ones(self.held):
            raise FreezeError("where only a few entries train, the frozen ones are not kept: load the base instead")
        with torch.no_grad():
            if model is None:
                self.follow_model()
                for item in self.held:
                    item.write()
            else:
                for item, parameter in self._partners(model):
                    item.write_to(parameter)
        return self.entries

    def follow(self, copy: torch.nn.Module) -> None:
        """Keep the entries in an averaged copy of the model too (EMA, SWA, `swa_utils.AveragedModel`).

        They are written into it now, before its `state_dict()` is read, and by `restore_copies`.

        Raises:
            FreezeError: `copy` is no copy of the model.
        """
        slots = {id(item): slot for slot, item in enumerate(self.held)}
        partners = {id(parameter): slots[id(item)] for item, parameter in self._partners(copy)}
        release(copy)
        self.restore(copy)
        for module in copy.modules():
            parts = {name: partners[id(p)] for name, p in module._parameters.items() if id(p) in partners}
            if parts:
                Watch(self, module, parts, "followed")

    def restore_copies(self) -> None:
        """Write the saved values into every copy that is followed."""
        for watch in list(self.copies):
            if watch.role == "followed":
                watch.put_back()

    def release(self, copy: torch.nn.Module) -> None:
        """Let a copy of the model be trained and saved as if it were no copy."""
        release(copy)

    def remove(self) -> None:
        """Take all hooks off; the entries train again. `verify` and `restore` keep working."""
        self._is_on = False
        tell_no_more(self)
        for item in self.held:
            if item.gradient_hook is not None:
                item.gradient_hook.remove()
                item.gradient_hook = None
        for watch in [*self._watches.values(), *self.copies]:
            watch.let_go()
        self._watches.clear()
        for optimizer in self._optimizers:
            swap_out(optimizer, short_ones(self._open.pop(id(optimizer), [])))  # of a step that failed
        for short in short_ones(self.held):
            short.let_go(self._optimizers)

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Find out whether the promise was broken since the last step, and make the gradients clean.

        Raises:
            FreezeError: it was, or this optimizer breaks it.
        """
        swap_out(optimizer, short_ones(self._open.pop(id(optimizer), [])))  # of a step that failed
        mine = self._held_by(optimizer)
        if not mine:
            return
        refuse_swapping(optimizer)
        with torch.no_grad():
            if not self._looked_for_twins and not any(item.is_partial for item in self.held):
                watch_twins(self, self._model, self._owners(), set(self._known))
            self._looked_for_twins = True
            moved = self._first_that_moved(mine)
            if moved is not None:
                raise FreezeError(
                    f"tensor '{moved.name}': something other than an optimizer's step has changed frozen entries "
                    "since the last step (a hook, clamping or another write to the weights, a perturbation, an average "
                    "that was put in); write to the weights before freeze() or not at all, or call frozen.restore() "
                    "after it"
                )
            for item in mine:
                if item.gradient_hook is None and item.parameter.requires_grad:  # it was switched on late
                    self._gradients.hook(item)
                if not item.gradient_is_clean:
                    item.zero_gradient()  # it was assigned, not accumulated by a backward pass
            if short_ones(mine) and not wraps(optimizer):
                if needs_whole(optimizer, has_closure):
                    mine = self._all_kept(mine)
                swap_in(optimizer, short_ones(mine))
                self._optimizers.add(optimizer)
        self._open[id(optimizer)] = mine

    def after_step(self, optimizer: Optimizer) -> None:
        """Put the entries back into what the optimizer has changed."""
        mine = self._open.pop(id(optimizer), None)
        if mine is None:
            return
        swap_out(optimizer, short_ones(mine))
        with torch.no_grad():
            for item in mine:
                item.write()
                item.gradient_is_clean = False
        self._gradients.stepped = True

    def follow_model(self, trained: Sequence[torch.Tensor] | None = None) -> bool:
        """Hold the entries in what has taken a frozen parameter's place, such as its shards; True if anything has.

        Raises:
            FreezeError: nothing has that could hold them, and the model is what is asked about, or what is `trained`.
        """
        present = {id(parameter) for parameter in self._model.parameters()}
        is_asked_about = trained is None or any(id(parameter) in present for parameter in trained)
        slots = [
            slot
            for slot, item in enumerate(self.held)
            if id(item.parameter) not in present or (is_elsewhere(item.parameter) and not item.is_partial)
        ]
        if not slots:
            return False
        chosen, _ = bind(self.bundle, dict(self._model.named_parameters(remove_duplicate=False)))
        changed = False
        for slot in slots:
            item = self.held[slot]
            found = chosen.get(item.name)
            if found is None and not is_asked_about:
                continue
            if found is None:
                raise FreezeError(
                    f"the model no longer has the parameter that was frozen in '{item.name}', nor one that could "
                    "hold the frozen entries: it was replaced after freeze() by another library; freeze after that"
                )
            new = found[min(item.copy, len(found) - 1)]
            gathered = is_distributed(item.parameter) and not is_distributed(new.parameter)  # by FSDP2, for a while
            if gathered or new.parameter.device.type == "meta":
                continue
            is_same = new.parameter is item.parameter  # of which DeepSpeed keeps the masters now
            self._put(slot, item if is_same else item.in_place_of(new, self.bundle))
            changed = True
        if changed:
            self._index()
        return changed

    def _all_kept(self, mine: Sequence[Held]) -> list[Held]:
        """Keep all values from now on of what was held by the few entries that train."""
        slots = [self._by_id[id(item.parameter)] for item in mine]
        for slot in slots:
            item = self.held[slot]
            if isinstance(item, TrainedEntries):
                item.let_go(self._optimizers)
                self._put(slot, item.all_kept(item.parameter))
        self._index()
        return [self.held[slot] for slot in slots]

    def _put(self, slot: int, held: Held) -> None:
        hook = self.held[slot].gradient_hook
        if hook is not None:
            hook.remove()
        self.held[slot] = held = with_master(held)
        if self._is_on and (hook is not None or held.parameter.requires_grad):
            self._gradients.hook(held)

    def _index(self) -> None:
        """Note which parameters are frozen now, and watch the modules that hold them."""
        self._by_id = {id(item.parameter): slot for slot, item in enumerate(self.held)}
        self._elsewhere = [slot for slot, item in enumerate(self.held) if is_elsewhere(item.parameter)]
        self._known.clear()
        owners, watches = (self._owners() if self._is_on else {}), dict(self._watches)
        for module in watches.keys() - owners.keys():
            watches.pop(module).let_go()
        for module, slots in owners.items():
            if module in watches:  # whose hooks may be running
                watches[module].slots = slots
            else:
                watches[module] = Watch(self, module, slots, "model")
        self._watches = watches

    def _owners(self) -> dict[torch.nn.Module, dict[str, int]]:
        owners: dict[torch.nn.Module, dict[str, int]] = {}
        for module in self._model.modules():
            for name, parameter in module._parameters.items():
                if id(parameter) in self._by_id:
                    owners.setdefault(module, {})[name] = self._by_id[id(parameter)]
        return owners

    def _held_by(self, optimizer: Optimizer) -> list[Held]:
        """Return the items whose parameters an optimizer holds; others that it holds are looked at once."""
        slots, new = self._sorted(optimizer)
        if new:
            if self.follow_model(new):
                slots, new = self._sorted(optimizer)
            for watch in list(self.copies):
                watch.before_step(optimizer)
            self._known.update((id(parameter), parameter) for parameter in new)
        return [self.held[slot] for slot in dict.fromkeys([*slots, *self._elsewhere])]

    def _sorted(self, optimizer: Optimizer) -> tuple[list[int], list[torch.Tensor]]:
        """Return where those parameters of an optimizer that are frozen are held, and others that it trains newly."""
        slots, new = [], []
        for parameter in parameters_of(optimizer):
            slot = self._by_id.get(id(parameter))
            if slot is not None:
                slots.append(slot)
            elif self._known.get(id(parameter)) is not parameter and parameter.requires_grad:
                new.append(parameter)
        return slots, new

    def _first_that_moved(self, mine: Sequence[Held]) -> Held | None:
        """Compare all entries where something is new or was written to, and in turn; a few entries everywhere."""
        for item in mine:
            item.steps += 1
            turn = item.steps + self._by_id[id(item.parameter)]
            closely = item.steps <= _FIRST_STEPS or turn % EVERY == 0 or item.was_touched()
            if closely and item.seems_moved():
                return item
        return first_that_differs(mine)

    def _look_after_pass(self, passed: Sequence[Held]) -> None:
        """Look at what a backward pass has passed though no step came before it.

        Weights that are perturbed for a pass (SAM) are seen in one of them, and hold the same numbers at frozen
        entries.

        Raises:
            FreezeError: frozen entries have changed without a step, and in two passes or with the gradients taken away.
        """
        if any(is_elsewhere(item.parameter) and not item.is_partial for item in passed):
            self.follow_model()  # DeepSpeed has taken the model over since freeze()
            return
        with torch.no_grad():
            moved = first_that_differs(passed)
        self._passes_moved = 0 if moved is None else self._passes_moved + 1
        taken = any(item.parameter.grad is None for item in passed if not is_elsewhere(item.parameter))
        if moved is not None and (taken or self._passes_moved >= PASSES):
            raise FreezeError(
                f"tensor '{moved.name}': frozen entries have changed although no step of a torch optimizer took "
                "place: an optimizer that steps inside the backward pass by itself (LOMO), that keeps master weights "
                "elsewhere, or that does not call torch.optim.Optimizer.__init__; use one whose step() torch knows of"
            )

    def _partners(self, model: torch.nn.Module) -> list[tuple[Held, torch.nn.Parameter]]:
        chosen, misfits = bind(self.bundle, dict(model.named_parameters(remove_duplicate=False)))
        for item in self.held:
            if item.name not in chosen:
                raise FreezeError(f"tensor '{item.name}': {misfits[item.name]}")
        copies = [chosen[item.name] for item in self.held]
        return [
            (item, found[min(item.copy, len(found) - 1)].parameter)
            for item, found in zip(self.held, copies, strict=True)
        ]
