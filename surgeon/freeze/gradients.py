"""When the gradients of frozen entries are set to zero: at the end of a backward pass, or as soon as each is there.

Either is before whoever clips, and before the optimizer. All at once is several times as fast, since the backward pass
of a layer drives everything that is needed for it out of the processor's caches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgeon.errors import FreezeError
from surgeon.freeze.held import Held


class Gradients:
    """The gradients that have been accumulated, and are not clean yet."""

    def __init__(self) -> None:
        self.attached = False  # whether an optimizer is there whose steps are followed
        self._waiting: dict[int, Held] = {}
        self._pass = -1  # number of the backward pass at whose end they are cleaned

    def hook(self, item: Held) -> Any:
        """Clean a parameter's gradient whenever one has been accumulated; returns the handle."""

        def accumulated(parameter: Tensor) -> None:
            if not self.attached:
                raise FreezeError(
                    "a backward pass through a frozen model, but no optimizer is attached: "
                    "call frozen.attach(optimizer)"
                )
            number = torch._C._current_graph_task_id()
            # DDP, FSDP2 and DeepSpeed take the gradient in the same pass; outside of one there is no end to wait for.
            if number < 0 or item.cleans_at_once or torch.distributed.is_initialized():
                item.zero_gradient()
                return
            item.gradient_is_clean = False  # and stays so if the pass fails
            self._waiting[id(item)] = item
            if number != self._pass:
                self._pass = number
                engine: Any = torch.autograd.Variable._execution_engine
                engine.queue_callback(self.clean)

        register: Any = item.parameter.register_post_accumulate_grad_hook
        item.gradient_hook = register(accumulated)
        return item.gradient_hook

    def clean(self) -> None:
        """Clean all that wait."""
        waiting, self._waiting = self._waiting, {}
        for item in waiting.values():
            item.zero_gradient()
