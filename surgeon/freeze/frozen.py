"""`freeze` a model's entries, and the `Frozen` object that keeps and proves the promise.

The promise: after every step of an attached optimizer the frozen entries of the master weights hold their
original bits. Two hooks keep it. As soon as a parameter's gradient is accumulated, its frozen entries are set
to zero, so that they neither inflate the norm that gradients are clipped by nor enter the moments. After the
step the saved values are written back, because weight decay, momentum and stochastic rounding move entries
that have no gradient. Whatever would break the promise otherwise is looked for, and is an error.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from surgeon.errors import FreezeError, shorten
from surgeon.freeze.binding import bind
from surgeon.freeze.bundle import Bundle
from surgeon.freeze.deepspeed import hold_master, is_deepspeed
from surgeon.freeze.fitting import hold, other_values, refusal, refuse_flat_parameters, stepping
from surgeon.freeze.gradients import Gradients
from surgeon.freeze.held import Held
from surgeon.freeze.steps import Follower
from surgeon.freeze.trained import TrainedEntries
from surgeon.freeze.watch import Part, Watch, refuse_stranger, release, unwatch_steps, watch_steps
from surgeon.region.region import Region

logger = logging.getLogger(__name__)


def freeze(
    model: torch.nn.Module,
    source: str | Path | Bundle | Region,
    optimizer: Any = None,
    *,
    strict: bool = True,
    check_values: bool = True,
) -> Frozen:
    """Freeze the entries of a region in a model, at the values that they have now.

    Call it when the parameters are those that the optimizer holds: after `accelerator.prepare`, `fully_shard`
    or `deepspeed.initialize`. `source` is a checkpoint folder with a `freeze/` bundle, a Hub id, a region file,
    or a `Bundle` or `Region` in memory. `optimizer` (or a list of them) is attached; without one,
    `Frozen.attach` must be called before the first backward pass.

    `strict=False` freezes the tensors that fit and lists the others in `Frozen.skipped`. With
    `check_values=False` entries may hold other values than the bundle's base.

    Raises:
        FreezeError: the bundle does not fit the model, or the setup is one that would break the promise.
        RegionError: the region file is damaged.
    """
    if isinstance(source, Region):
        bundle = Bundle(source, {})
    else:
        bundle = source if isinstance(source, Bundle) else Bundle.load(source)
    refuse_flat_parameters(model)
    chosen, skipped = bind(bundle, dict(model.named_parameters(remove_duplicate=False)))
    if check_values and bundle.tensors:
        for name in list(chosen):
            reason = other_values(bundle, name, chosen[name][0])
            if reason is not None:
                skipped[name] = reason
                del chosen[name]
    if skipped and (strict or not chosen):
        raise FreezeError(refusal(bundle, skipped))
    if skipped:
        logger.warning("not frozen: %s", refusal(bundle, skipped))
    frozen = Frozen(bundle, model, hold(bundle, model, chosen), list(chosen), skipped)
    if optimizer is not None:
        try:
            frozen.attach(*(optimizer if isinstance(optimizer, list | tuple) else [optimizer]))
        except FreezeError:
            frozen.remove()
            raise
    return frozen


class Frozen:
    """The frozen entries of a model; made by `freeze`.

    `tensors` names, as in the bundle, the tensors that have frozen entries; `skipped` maps those that could not be
    frozen (with `strict=False`) to the reason.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: torch.nn.Module,
        held: list[Held],
        tensors: Sequence[str],
        skipped: Mapping[str, str],
    ) -> None:
        self.bundle = bundle
        self.tensors = list(tensors)
        self.skipped = dict(skipped)
        self.copies: weakref.WeakSet[Watch] = weakref.WeakSet()  # of the model, as far as they are known
        self._model = model
        self._held = held
        self._handles: list[Any] = []
        self._gradients = Gradients()
        self._followers: list[Follower] = []
        self._seen: weakref.WeakKeyDictionary[Optimizer, tuple[int, int]] = weakref.WeakKeyDictionary()
        for item in held:
            if item.parameter.requires_grad:
                self._hook_gradient(item)
        release(model)
        self._watches = [Watch(self, module, parts) for module, parts in _by_owner(held).items()]
        watch_steps(self)

    @property
    def entries(self) -> int:
        """Number of entries frozen in this process; under sharding, its share."""
        return sum(item.count for item in self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken in this process: the saved values, and where they belong."""
        return sum(item.nbytes for item in self._held)

    def attach(self, *optimizers: Any) -> Frozen:
        """Restore the entries after every step of these optimizers; give all that train the model at once.

        Wrappers (accelerate, Lightning) are looked through; under DeepSpeed give `engine.optimizer`.

        Raises:
            FreezeError: a frozen parameter is in none of them, or an optimizer is of a kind whose steps cannot
                be followed.
        """
        inner = [each for optimizer in optimizers for each in _innermost(optimizer)]
        if any(is_deepspeed(optimizer) for optimizer in inner):
            self._held = [hold_master(item, inner[0]) for item in self._held]
            self._follow(stepping(inner[0].optimizer), flat_copies=True)
            return self
        followed = [stepping(optimizer) for optimizer in inner]
        for item in self._held:
            if isinstance(item, TrainedEntries):
                for optimizer in followed:
                    item.take_over(optimizer)
        self._refuse_uncovered(followed)
        for optimizer in followed:
            if not any(follower.optimizer is optimizer for follower in self._followers):
                self._follow(optimizer, flat_copies=False)
        return self

    def verify(self, model: torch.nn.Module | None = None) -> int:
        """Check that every frozen entry holds its original bits; returns how many were checked.

        Looks at the weights that the optimizer changes and that the model has now, or at those of `model` (another
        wrapper of it, or a checkpoint that was saved and loaded again; its dtype may be narrower). Where parameters
        are sharded, every process must call it; entries that several processes hold are counted once.

        Raises:
            FreezeError: entries have moved, or the model has other parameters than those that were frozen.
        """
        replaced: list[str] = []
        with torch.no_grad():
            if model is None:
                replaced = self._replaced()
                moved = [_moved_now(item) for item in self._held]
            else:
                moved = [item.moved_in(parameter) for item, parameter in self._partners(model)]
        checked = self.entries
        if any(item.is_partial for item in self._held):
            moved, checked = _sum_over_processes(self._held, moved)
        names = [item.name for item, count in zip(self._held, moved, strict=True) if count]
        if names:
            raise FreezeError(f"{sum(moved)} of {checked} frozen entries have moved, in {shorten(names)}")
        if replaced and self._handles:
            raise FreezeError(
                f"the model no longer has the parameters that were frozen in {shorten(replaced)}: they were replaced "
                "after freeze(), and nothing holds the new ones; freeze after that"
            )
        return checked

    def restore(self, model: torch.nn.Module | None = None) -> int:
        """Write the saved values back, into `model` if given; returns the number of entries.

        On a model that was trained freely this is post-hoc reversion: the base inside the region, the trained
        weights outside.

        Raises:
            FreezeError: `model` lacks one of the tensors, or is sharded in another way; or nothing was saved, since
                only a few entries train (`train_only`).
        """
        if model is None and any(isinstance(item, TrainedEntries) for item in self._held):
            raise FreezeError("where only a few entries train, the frozen ones are not kept: load the base instead")
        with torch.no_grad():
            if model is None:
                for item in self._held:
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
        partners = {id(parameter): item for item, parameter in self._partners(copy)}
        self.release(copy)
        self.restore(copy)
        for module in copy.modules():
            parts = [(partners[id(p)], name) for name, p in module._parameters.items() if id(p) in partners]
            if parts:
                watch = Watch(self, module, parts, is_copy=True, puts_back=True)
                self._watches.append(watch)
                self.copies.add(watch)

    def restore_copies(self) -> None:
        """Write the saved values into every copy that is followed."""
        for watch in list(self.copies):
            module = None if watch.module is None else watch.module()
            if watch.puts_back and module is not None:
                watch.put_back(module)

    def release(self, copy: torch.nn.Module) -> None:
        """Let a deep copy of the model be trained and saved as if it were no copy."""
        release(copy)

    def remove(self) -> None:
        """Take all hooks off; the entries train again. `verify` and `restore` keep working."""
        for handle in self._handles:
            handle.remove()
        for watch in [*self._watches, *self.copies]:
            watch.let_go()
        for item in self._held:
            item.gradient_hook = None
            if isinstance(item, TrainedEntries):
                item.let_go([follower.optimizer for follower in self._followers])
        self._handles.clear()
        self._followers.clear()
        self._watches.clear()
        unwatch_steps(self)

    def see_step(self, optimizer: Optimizer) -> None:
        """Refuse the step of an optimizer that trains frozen parameters, or copies of them, without being attached."""
        attached = {id(follower.optimizer) for follower in self._followers}
        if id(optimizer) in attached or attached.intersection(map(id, _inside(optimizer))):
            return
        known = sum(len(group["params"]) for group in optimizer.param_groups), len(self.copies)
        if self._seen.get(optimizer) == known:
            return
        current = {id(p): item.name for watch in self._watches for p, (item, _) in watch.current() if not watch.is_copy}
        originals = {**{id(item.parameter): item.name for item in self._held}, **current}
        refuse_stranger(optimizer, originals, {id(p) for watch in self.copies for p, _ in watch.current()})
        self._seen[optimizer] = known

    def _hook_gradient(self, item: Held) -> None:
        self._handles.append(self._gradients.hook(item))

    def _refuse_uncovered(self, optimizers: list[Optimizer]) -> None:
        covered = {id(parameter) for o in optimizers for group in o.param_groups for parameter in group["params"]}
        trained = [item for item in self._held if item.parameter.requires_grad]
        for item in trained:
            if getattr(item.parameter, "_in_backward_optimizers", None):
                raise FreezeError(
                    f"tensor '{item.name}': its optimizer steps inside the backward pass, where it cannot be followed; "
                    "use an ordinary optimizer step"
                )
        missing = [item.name for item in trained if id(item.stepped) not in covered]
        if missing:
            raise FreezeError(
                f"no attached optimizer holds {shorten(missing)}. Either another optimizer trains it (attach all of "
                "them at once), or the parameters were replaced after freeze() (call it after prepare or fully_shard), "
                "or the optimizer keeps master weights elsewhere, which is not supported"
            )

    def _follow(self, optimizer: Optimizer, flat_copies: bool) -> None:
        follower = Follower(optimizer, self._held, flat_copies, self._hook_gradient)
        self._followers.append(follower)
        self._gradients.attached = True
        self._handles += follower.hooks()

    def _replaced(self) -> list[str]:
        """Name the tensors whose frozen parameter the model no longer has anywhere."""
        present = {id(parameter) for parameter in self._model.parameters()}
        return [item.name for item in self._held if id(item.parameter) not in present]

    def _partners(self, model: torch.nn.Module) -> list[tuple[Held, torch.nn.Parameter]]:
        chosen, misfits = bind(self.bundle, dict(model.named_parameters(remove_duplicate=False)))
        for item in self._held:
            if item.name not in chosen:
                raise FreezeError(f"tensor '{item.name}': {misfits[item.name]}")
        copies = [chosen[item.name] for item in self._held]
        return [
            (item, found[min(item.copy, len(found) - 1)].parameter)
            for item, found in zip(self._held, copies, strict=True)
        ]


def _by_owner(held: Sequence[Held]) -> dict[torch.nn.Module, list[Part]]:
    owners: dict[torch.nn.Module, list[Part]] = {}
    for item in held:
        for module, name in item.owners:
            owners.setdefault(module, []).append((item, name))
    return owners


def _moved_now(item: Held) -> int:
    """Count moved entries where the optimizer works, and in what has taken the parameter's place, if it is alike."""
    moved = item.moved()
    for module, name in item.owners:
        now = module._parameters.get(name)
        if now is None or now is item.parameter or type(now) is not type(item.parameter):
            continue
        if now.shape == item.parameter.shape and now.is_floating_point():
            moved = max(moved, item.moved_in(now))
    return moved


def _innermost(optimizer: Any) -> list[Any]:
    """Look through wrappers, whose own step hooks may not run; stop at DeepSpeed's, which owns flat copies."""
    while not is_deepspeed(optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    several = getattr(optimizer, "optimizers", None)  # torchtitan's container
    return list(several) if isinstance(several, list | tuple) and several else [optimizer]


def _inside(optimizer: Any) -> list[Any]:
    """Return the optimizers that one wraps."""
    single = [getattr(optimizer, name, None) for name in ("optimizer", "base_optimizer")]
    found = [*(each for each in single if each is not None), *getattr(optimizer, "optimizers", ())]
    return [*found, *(inner for each in found if each is not optimizer for inner in _inside(each))]


def _sum_over_processes(held: Sequence[Held], moved: list[int]) -> tuple[list[int], int]:
    """Add up over processes, entries that several hold once; one that moved in any of them counts."""
    import torch.distributed as distributed

    counted = [item.is_counted for item in held]
    entries = sum(item.count for item, once in zip(held, counted, strict=True) if once)
    if not distributed.is_initialized():
        return moved, entries
    device = distributed.distributed_c10d._get_pg_default_device()
    once = [count if here else 0 for count, here in zip(moved, counted, strict=True)]
    sums = torch.tensor([*once, entries], dtype=torch.int64, device=device)
    worst = torch.tensor(moved, dtype=torch.int64, device=device)
    distributed.all_reduce(sums)
    distributed.all_reduce(worst, distributed.ReduceOp.MAX)
    *totals, entries = sums.tolist()
    return [max(total, most) for total, most in zip(totals, worst.tolist(), strict=True)], entries
