"""What happens around each step of an attached optimizer: look, let it step, put the entries back.

Before the step it is found out whether the promise was broken since the last one, at next to no cost: whether the
optimizer still holds the frozen parameters and the model still has them, and whether a few entries of each (the
outermost ones among them) hold their bits. All entries of a parameter are compared where autograd has counted a
write to it, those of one more parameter in turn, and all of them in the steps after anything new.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from surgeon.errors import FreezeError, shorten
from surgeon.freeze.entries import bits
from surgeon.freeze.held import Held
from surgeon.freeze.state import clean_state

# So many steps after something new (the first step, decay switched on, a loaded state) everything is looked at.
_WATCHED_STEPS = 2
_LOOKS = 4  # parameters whose gradients are looked at before a later step; whatever dirties them dirties most of them
_REPLACED = (
    "the parameters were replaced after freeze() (by fully_shard or prepare, deepspeed.initialize, "
    "load_state_dict(assign=True), or a conversion), so that nothing holds the new ones: freeze after that"
)


class Follower:
    """Keeps the frozen entries of the parameters that one optimizer holds.

    With `flat_copies` it steps on copies (DeepSpeed), not on the model's own parameters. `hook_gradient` puts the
    gradient hook on a parameter that trains only later.
    """

    def __init__(
        self, optimizer: Optimizer, held: Sequence[Held], flat_copies: bool, hook_gradient: Callable[[Held], None]
    ) -> None:
        self.optimizer = optimizer
        self.held = held
        self.flat_copies = flat_copies
        self.hook_gradient = hook_gradient
        self._groups: dict[int, dict[str, Any]] = {}
        self._settings: list[bool] = []
        self._watch_for = _WATCHED_STEPS
        self._dirties_state = False  # by coupled weight decay, which enters it without a gradient
        self._dirties_gradients = False  # by something that writes to them after the backward pass (PowerSGD)
        self._turn = 0
        self._looks = Looks()
        self._expected: set[int] = set()
        self._expected = {id(item) for item in self._mine()}
        self.clean()

    def hooks(self) -> list[Any]:
        """Register with the optimizer; returns the handles."""
        return [
            self.optimizer.register_step_pre_hook(self.before),
            self.optimizer.register_step_post_hook(self.after),
            self.optimizer.register_load_state_dict_post_hook(self.clean),
        ]

    def clean(self, *_: Any) -> None:
        """Set the state at all frozen places to what it starts from, and look closely for some steps."""
        for item in self._mine():
            self._clean(item)
        self._watch_for = _WATCHED_STEPS

    def before(self, *_: Any) -> None:
        """Find out whether the promise was broken since the last step, and make the gradients clean.

        Raises:
            FreezeError: it was.
        """
        mine = self._mine()
        self._refuse_lost(mine)
        if self._changed_settings():
            self._watch_for = max(self._watch_for, _WATCHED_STEPS)
        self._turn += 1
        moved = self._first_that_moved(mine)
        if moved is not None:
            raise FreezeError(
                f"tensor '{moved.name}': something other than the attached optimizer has changed frozen entries "
                "since the last step (another optimizer, a hook, clamping or another write to the weights, SAM's "
                "perturbation); attach every optimizer, and write to the weights before freeze() or not at all"
            )
        if not self.flat_copies:
            self._clean_gradients(mine)

    def after(self, *_: Any) -> None:
        """Put the entries back, and clean the state where that is needed."""
        mine = self._mine()
        in_turn = self._in_turn(mine)
        for item in mine:
            item.write()
            item.gradient_is_clean = False
            if self._watch_for or self._dirties_state or item is in_turn:
                self._dirties_state |= self._clean(item)
        self._watch_for = max(0, self._watch_for - 1)

    def _mine(self) -> Sequence[Held]:
        if self.flat_copies:
            return self.held
        self._groups = {id(parameter): group for group in self.optimizer.param_groups for parameter in group["params"]}
        return [item for item in self.held if id(item.stepped) in self._groups]

    def _refuse_lost(self, mine: Sequence[Held]) -> None:
        here = {id(item) for item in mine}
        lost = [item.name for item in self.held if id(item) in self._expected and id(item) not in here]
        self._expected |= here
        if lost:
            raise FreezeError(f"the optimizer no longer holds {shorten(lost)}: {_REPLACED}")
        replaced = [item.name for item in mine if item.is_replaced()]
        if replaced:
            raise FreezeError(f"the model no longer has the frozen parameter of {shorten(replaced)}: {_REPLACED}")

    def _changed_settings(self) -> bool:
        now = [bool(group.get("weight_decay")) for group in self.optimizer.param_groups]
        changed, self._settings = now != self._settings, now
        return changed

    def _first_that_moved(self, mine: Sequence[Held]) -> Held | None:
        """Compare all entries where something is new or was written to, and in turn; a few entries everywhere."""
        in_turn = self._in_turn(mine)
        for item in mine:
            closely = self._watch_for or item is in_turn or item.was_touched()
            if closely and item.seems_moved():
                return item
        return self._looks.first_that_differs(mine)

    def _in_turn(self, mine: Sequence[Held]) -> Held | None:
        return mine[self._turn % len(mine)] if mine else None

    def _clean_gradients(self, mine: Sequence[Held]) -> None:
        for item in mine:
            if item.gradient_hook is None and item.parameter.requires_grad:  # it was switched on late
                self.hook_gradient(item)
            if not item.gradient_is_clean or self._dirties_gradients:
                item.zero_gradient()  # it was assigned, not accumulated by a backward pass
        rows = len(mine) if self._watch_for else min(_LOOKS, len(mine))
        some = [mine[(self._turn * _LOOKS + i) % len(mine)] for i in range(rows)]
        if not self._dirties_gradients and _any_gradient(some):
            self._dirties_gradients = True
            for item in mine:
                item.zero_gradient()

    def _clean(self, item: Held) -> bool:
        group = self._groups.get(id(item.stepped)) or self.optimizer.param_groups[0]
        return clean_state(item, self.optimizer, group)


class Looks:
    """Compares a few entries of many parameters at once."""

    def __init__(self) -> None:
        self._expected: dict[tuple[Any, Any], tuple[list[Held], Tensor]] = {}

    def first_that_differs(self, items: Sequence[Held]) -> Held | None:
        """Return a parameter whose looked-at entries have other bits; one comparison per dtype and device."""
        looks: dict[tuple[Any, Any], list[tuple[Held, Tensor]]] = defaultdict(list)
        for item in items:
            seen = item.look()
            if seen is not None:
                looks[seen.dtype, seen.device].append((item, seen))
        for kind, pairs in looks.items():
            there = [item for item, _ in pairs]
            known, expected = self._expected.get(kind, ([], None))
            if expected is None or known != there:
                expected = torch.cat([item.look_bits for item in there])
                self._expected[kind] = there, expected
            if not torch.equal(bits(torch.cat([entries for _, entries in pairs])), expected):
                return next(item for item, entries in pairs if not torch.equal(bits(entries), item.look_bits))
        return None


def _any_gradient(items: Sequence[Held]) -> bool:
    """True if a looked-at frozen entry has a gradient other than zero (NaN included)."""
    looks: dict[tuple[Any, Any], list[Tensor]] = defaultdict(list)
    for item in items:
        found = item.look_at_gradient()
        if found is not None:
            looks[found.dtype, found.device].append(found)
    return any(bool(torch.cat(found).any()) for found in looks.values())
