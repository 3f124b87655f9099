"""When the gradients of frozen entries are set to zero: at the end of a backward pass, or as soon as each is there.

Either is before whoever clips, and before the optimizer. All at once is several times as fast, since the backward pass
of a layer drives everything that is needed for it out of the processor's caches.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

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

    def hook(self, item: Held) -> Any:
        """Clean a parameter's gradient whenever one has been accumulated; returns the handle.

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
        return item.gradient_hook

    def clean(self) -> None:
        """Clean all that wait, at the end of a pass."""
        passed, self._passed = self._passed, []
        for item in passed:
            if not item.gradient_is_clean:
                item.zero_gradient()
        stepped, self.stepped = self.stepped, False
        if not stepped:
            self.look(passed)
