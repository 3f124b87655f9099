"""An optimizer's state at the frozen places: what it would be there had no gradient and no decay ever come.

Only optimizers are cleaned whose state is known to have one entry per entry of the parameter; others (SOAP and
GaLore keep it in another basis, low-bit ones quantized) are left alone. The frozen weights do not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from surgeon.freeze.entries import bits
from surgeon.freeze.held import Held

_ELEMENTWISE = ("torch.optim", "transformers.optimization", "lion_pytorch", "deepspeed.ops")
_ZERO = {
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta",
    "prev",
}  # fmt: skip
_STARTS_AT = {"sum": "initial_accumulator_value", "step_size": "lr"}  # Adagrad, Rprop: the group's key
_AVERAGES = {"ax"}  # ASGD: an average of the weights


def clean_state(item: Held, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> bool:
    """Set the state at the frozen places to what it starts from, averages to the weights; True if any was not."""
    if not type(optimizer).__module__.startswith(_ELEMENTWISE):
        return False
    dirty = False
    for key, flat in item.state(optimizer).items():
        wanted = _wanted(key, item, group)
        if wanted is None:
            continue
        item.here.to(flat.device)
        found = item.here.select(flat)
        wanted = wanted.to(found)
        differs = bits(found) != bits(wanted) if key in _AVERAGES else found != wanted  # an average of -0.0 is 0.0
        if bool(differs.any()):
            dirty = dirty or key != "step_size"  # which adapts to the learning rate, not to a gradient
            item.here.write(flat, wanted.expand_as(found).contiguous())
    return dirty


def _wanted(key: str, item: Held, group: Mapping[str, Any]) -> Tensor | None:
    if key in _ZERO:
        return torch.zeros(())
    if key in _STARTS_AT:
        start = group.get(_STARTS_AT[key])
        return None if start is None else torch.as_tensor(float(start))
    return item.values() if key in _AVERAGES else None
