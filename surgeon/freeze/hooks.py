"""Where freezing listens: at every backward pass of a frozen parameter, and around every step of every optimizer.

The gradients of frozen entries become zero at the end of a backward pass, or as soon as each is there. Either is before
whoever clips, and before the optimizer. All at once is several times as fast, since the backward pass of a layer drives
everything that is needed for it out of the processor's caches.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from surgeon.errors import FreezeError
from surgeon.freeze.held import Held


class Gradients:
    """The gradients that have been accumulated, and are not clean yet.

    At the end of every pass before which no step took place, `look` is called with the parameters that were passed:
    what changes weights in other ways than by steps is seen there.
    """

    def __init__(self, look: Callable[[Sequence[Held]], None]) -> None:
        self.look = look
        self.stepped = True
        self._passed: list[Held] = []
        self._pass = -1  # number of the backward pass that is under way

    def hook(self, item: Held) -> None:
        """Clean a parameter's gradient whenever one has been accumulated.

        The hook keeps neither alive: no collector of garbage sees what a tensor's hooks hold.
        """
        known_item, known_self = weakref.ref(item), weakref.ref(self)

        def accumulated(parameter: Tensor) -> None:
            item, self = known_item(), known_self()
            if item is None or self is None:
                return
            number = torch._C._current_graph_task_id()
            item.gradient_is_clean = False  # and stays so if the pass fails
            # DDP, FSDP2 and DeepSpeed take the gradient in the same pass; outside of one there is no end to wait for.
            # So may hooks on gradients that step by themselves.
            if number < 0 or item.cleans_at_once or parameter._backward_hooks or torch.distributed.is_initialized():
                item.zero_gradient()
            if number >= 0:
                self._passed.append(item)
            if number >= 0 and number != self._pass:
                self._pass = number
                engine: Any = torch.autograd.Variable._execution_engine
                engine.queue_callback(self.clean)

        register: Any = item.parameter.register_post_accumulate_grad_hook
        item.gradient_hook = register(accumulated)
        hooks: Any = item.parameter._post_accumulate_grad_hooks
        hooks.move_to_end(item.gradient_hook.id, last=False)  # before whoever steps in one, or takes the gradient away

    def clean(self) -> None:
        """Clean all that wait, at the end of a pass."""
        passed, self._passed = self._passed, []
        for item in passed:
            if not item.gradient_is_clean:
                item.zero_gradient()
        stepped, self.stepped = self.stepped, False
        if not stepped:
            self.look(passed)


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
