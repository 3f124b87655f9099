"""`freeze` a model's entries, and the `Frozen` object that keeps and proves the promise.

The promise: after every step of an attached optimizer the frozen entries of the master weights hold their
original bits. Two hooks keep it. As soon as a parameter's gradient is accumulated, its frozen entries are set
to zero, so that they neither inflate the norm that gradients are clipped by nor enter the moments. After the
step the saved values are written back, because weight decay, momentum and stochastic rounding move entries
that have no gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from surgeon.errors import FreezeError
from surgeon.freeze.binding import Bound, bind
from surgeon.freeze.bundle import Bundle, sha256, shorten
from surgeon.freeze.deepspeed import hold_master, is_deepspeed
from surgeon.freeze.held import TORCH_DTYPES, Held, bits, whole_flat
from surgeon.region.region import Region

logger = logging.getLogger(__name__)

# In this many first steps of an optimizer it is found out whether anything else changes the entries between steps,
# and whether its moments need cleaning.
_WATCHED_STEPS = 2


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
    _refuse_flat_parameters(model)
    chosen, skipped = bind(bundle, dict(model.named_parameters(remove_duplicate=False)))
    if check_values and bundle.tensors:
        for name in list(chosen):
            reason = _other_values(bundle, name, chosen[name][0])
            if reason is not None:
                skipped[name] = reason
                del chosen[name]
    if skipped and (strict or not chosen):
        raise FreezeError(_refusal(bundle, skipped))
    if skipped:
        logger.warning("not frozen: %s", _refusal(bundle, skipped))
    frozen = Frozen(bundle, _hold(bundle, chosen), list(chosen), skipped)
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

    def __init__(self, bundle: Bundle, held: list[Held], tensors: Sequence[str], skipped: Mapping[str, str]) -> None:
        self.bundle = bundle
        self.tensors = list(tensors)
        self.skipped = dict(skipped)
        self._held = held
        self._handles: list[Any] = []
        self._attached: list[Optimizer] = []
        for item in held:
            if item.parameter.requires_grad:
                register: Any = item.parameter.register_post_accumulate_grad_hook
                item.gradient_hook = register(self._gradient_hook(item))
                self._handles.append(item.gradient_hook)

    @property
    def entries(self) -> int:
        """Number of entries frozen in this process; under sharding, its share."""
        return sum(item.values.numel() for item in self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken in this process: the saved values and their indices."""
        return sum(tensor.nbytes for item in self._held for tensor in (item.values, item.indices))

    def attach(self, *optimizers: Any) -> Frozen:
        """Restore the entries after every step of these optimizers; give all that train the model at once.

        Wrappers (accelerate, Lightning) are looked through; under DeepSpeed give `engine.optimizer`.

        Raises:
            FreezeError: a frozen parameter is in none of them, or an optimizer is of a kind whose steps cannot
                be followed.
        """
        inner = [_innermost(optimizer) for optimizer in optimizers]
        if any(is_deepspeed(optimizer) for optimizer in inner):
            self._held = [hold_master(item, inner[0]) for item in self._held]
            self._follow(_stepping(inner[0].optimizer), flat_copies=True)
            return self
        followed = [_stepping(optimizer) for optimizer in inner]
        self._refuse_uncovered(followed)
        for optimizer in followed:
            if optimizer not in self._attached:
                self._follow(optimizer, flat_copies=False)
        return self

    def verify(self, model: torch.nn.Module | None = None) -> int:
        """Check that every frozen entry holds its original bits; returns how many were checked.

        Looks at the weights that the optimizer changes, or at those of `model` (another wrapper of it, or a
        checkpoint that was saved and loaded again; its dtype may be narrower). Where parameters are sharded,
        every process must call it.

        Raises:
            FreezeError: entries have moved.
        """
        with torch.no_grad():
            if model is None:
                moved = [item.moved() for item in self._held]
            else:
                moved = [item.moved_in(parameter) for item, parameter in self._partners(model)]
        checked = self.entries
        if any(item.is_partial for item in self._held):
            moved, checked = _sum_over_processes(moved, checked)
        names = [item.name for item, count in zip(self._held, moved, strict=True) if count]
        if names:
            raise FreezeError(f"{sum(moved)} of {checked} frozen entries have moved, in {shorten(names)}")
        return checked

    def restore(self, model: torch.nn.Module | None = None) -> int:
        """Write the saved values back, into `model` if given; returns the number of entries.

        On a model that was trained freely this is post-hoc reversion: the base inside the region, the trained
        weights outside.

        Raises:
            FreezeError: `model` lacks one of the tensors, or is sharded in another way.
        """
        with torch.no_grad():
            if model is None:
                for item in self._held:
                    item.write()
            else:
                for item, parameter in self._partners(model):
                    item.write_to(parameter)
        return self.entries

    def remove(self) -> None:
        """Take all hooks off; the entries train again. `verify` and `restore` keep working."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._attached.clear()

    def _gradient_hook(self, item: Held) -> Callable[[Tensor], None]:
        def clean(parameter: Tensor) -> None:
            if not self._attached:
                raise FreezeError(
                    "a backward pass through a frozen model, but no optimizer is attached: "
                    "call frozen.attach(optimizer)"
                )
            item.zero_gradient()

        return clean

    def _refuse_uncovered(self, optimizers: list[Optimizer]) -> None:
        covered = {id(parameter) for o in optimizers for group in o.param_groups for parameter in group["params"]}
        trained = [item for item in self._held if item.parameter.requires_grad]
        for item in trained:
            if getattr(item.parameter, "_in_backward_optimizers", None):
                raise FreezeError(
                    f"tensor '{item.name}': its optimizer steps inside the backward pass, where it cannot be followed; "
                    "use an ordinary optimizer step"
                )
        missing = [item.name for item in trained if id(item.parameter) not in covered]
        if missing:
            raise FreezeError(
                f"no attached optimizer holds {shorten(missing)}. Either another optimizer trains it (attach all of "
                "them at once), or the parameters were replaced after freeze() (call it after prepare or fully_shard), "
                "or the optimizer keeps master weights elsewhere, which is not supported"
            )

    def _follow(self, optimizer: Optimizer, flat_copies: bool) -> None:
        """Hook one optimizer; with `flat_copies` it steps on copies, not on the model's own parameters."""
        steps = 0
        dirties_moments = False  # by coupled weight decay, which enters them without a gradient

        def mine() -> list[Held]:
            if flat_copies:
                return self._held
            owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            return [item for item in self._held if id(item.parameter) in owned]

        def before(*_: Any) -> None:
            nonlocal steps
            for item in mine():
                if steps < _WATCHED_STEPS and item.moved():
                    raise FreezeError(
                        f"tensor '{item.name}': something other than the attached optimizer has changed frozen entries "
                        "since the last step; attach every optimizer, and do not step inside the backward pass"
                    )
                if not item.gradient_is_clean and not flat_copies:
                    item.zero_gradient()  # it was assigned, not accumulated by a backward pass
            steps += 1

        def after(*_: Any) -> None:
            nonlocal dirties_moments
            for item in mine():
                item.write()
                item.gradient_is_clean = False
                if dirties_moments or steps <= _WATCHED_STEPS:
                    dirties_moments |= item.clean_moments(optimizer)

        def clean(*_: Any) -> None:
            for item in mine():
                item.clean_moments(optimizer)

        clean()
        self._handles += [
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
            optimizer.register_load_state_dict_post_hook(clean),
        ]
        self._attached.append(optimizer)

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


def _hold(bundle: Bundle, chosen: Mapping[str, list[Bound]]) -> list[Held]:
    """Save the frozen values; a parameter that holds several tensors gets the union of their entries."""
    by_parameter: dict[int, tuple[int, Parameter, dict[str, int]]] = {}
    for name, places in chosen.items():
        for copy, place in enumerate(places):
            entry = by_parameter.setdefault(id(place.parameter), (copy, place.parameter, {}))
            entry[2][name] = place.offset
    held = []
    for copy, parameter, offsets in by_parameter.values():
        indices = np.unique(np.concatenate([bundle.region.indices(name) + offset for name, offset in offsets.items()]))
        held.append(Held(next(iter(offsets)), parameter, indices, copy))
    return held


def _other_values(bundle: Bundle, name: str, place: Bound) -> str | None:
    """Say why the parameter's frozen entries are not those of the bundle; None if they are."""
    expected = bundle.tensors[name]
    indices = torch.from_numpy(bundle.region.indices(name) + place.offset)
    with whole_flat(place.parameter) as flat:
        values = flat[indices.to(flat.device)].cpu()
    stored = TORCH_DTYPES[expected.dtype]
    if torch.finfo(values.dtype).bits < torch.finfo(stored).bits:
        return (
            f"stored as {expected.dtype} but loaded as {values.dtype}, so its values cannot be compared: "
            f"load the model with dtype={stored}, or pass check_values=False to freeze the rounded values"
        )
    cast = values.to(stored)
    exact = bool((bits(cast.to(values.dtype)) == bits(values)).all())
    if exact and sha256(bits(cast).numpy().tobytes()) == expected.frozen_sha256:
        return None
    base = (bundle.base or {}).get("name", bundle.source)
    return f"its frozen entries are not those of {base}: the model was made from another base, or they were trained"


def _refusal(bundle: Bundle, misfits: Mapping[str, str]) -> str:
    if not misfits:
        return f"{bundle.source}: freezes nothing"
    name, reason = next(iter(misfits.items()))
    others = f" ({len(misfits)} of {len(bundle.names())} tensors do not fit)" if len(misfits) > 1 else ""
    return f"{bundle.source}: tensor '{name}': {reason}{others}"


def _innermost(optimizer: Any) -> Any:
    """Look through wrappers, whose own step hooks do not run; stop at DeepSpeed's, which owns flat copies."""
    while not is_deepspeed(optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _stepping(optimizer: Any) -> Optimizer:
    kind = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
    if not isinstance(optimizer, Optimizer):
        raise FreezeError(f"{kind} is no torch.optim.Optimizer, so its steps cannot be followed")
    if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)):
        raise FreezeError(
            f"{kind} swaps the weights between training and evaluation (schedule-free), outside of its steps; "
            "use an optimizer that leaves the weights alone between steps"
        )
    return optimizer


def _refuse_flat_parameters(model: torch.nn.Module) -> None:
    for module in model.modules():
        if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
            raise FreezeError(
                "the model is wrapped by FSDP1, which flattens its parameters; "
                "use FSDP2 (fully_shard, or fsdp_version: 2 in accelerate)"
            )


def _sum_over_processes(moved: list[int], checked: int) -> tuple[list[int], int]:
    import torch.distributed as distributed

    if not distributed.is_initialized():
        return moved, checked
    device = distributed.distributed_c10d._get_pg_default_device()
    counts = torch.tensor([*moved, checked], dtype=torch.int64, device=device)
    distributed.all_reduce(counts)
    *moved, checked = counts.tolist()
    return moved, checked
