"""A layer too large for one device, sharded over ranks by torch itself: its gradients are those of the whole."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.model.layer_stack import make_stack
from surgeon.model.model import load_model
from surgeon.ranks import group

_PLAN = {
    **{f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}, "self_attn.o_proj": RowwiseParallel(),
    "mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel(),
}  # fmt: skip


def compare(model: str, how: str) -> None:
    """Take a gradient down through a layer that is whole, and through one that is sharded, by our own calls."""
    with group.joined("cpu"):
        whole, hidden = _gradients(model, lambda layer: layer)
        sharded, below = _gradients(model, _shard if how == "fully_shard" else _parallel)
        assert sorted(whole) == sorted(sharded)
        assert len(whole) == 9
        for name, expected in whole.items():
            torch.testing.assert_close(sharded[name], expected, rtol=1e-4, atol=1e-6, msg=name)
        torch.testing.assert_close(below, hidden, rtol=1e-4, atol=1e-6)


def _gradients(model: str, shard: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    stack = make_stack(load_model(Checkpoint.open(model), "float32"))
    stack.loaded.weights.fill()
    number = len(stack.layers) - 1
    for parameter in stack.inner(number):
        parameter.data = parameter.data.clone()
        parameter.requires_grad_()
    shard(stack.layers[number])
    call = stack.enter(torch.arange(24).view(2, 12))
    assert call.hidden is not None
    hidden = call.hidden.detach().clone().requires_grad_()
    output = stack.layer(number, hidden, call.arguments[number])
    output.backward(torch.ones_like(output))
    found = {name: _full(p.grad, p) for name, p in stack.layers[number].named_parameters()}
    assert hidden.grad is not None
    return found, hidden.grad


def _full(gradient: Any, parameter: Any) -> torch.Tensor:
    """Return a gradient as a whole; a shard must really have been smaller than that."""
    if not isinstance(gradient, DTensor):
        return gradient
    assert gradient.to_local().numel() < parameter.numel() or gradient.placements[0].is_replicate()
    return gradient.full_tensor()


def _shard(layer: torch.nn.Module) -> None:
    fully_shard(layer, mesh=init_device_mesh("cpu", (group.world(),)))


def _parallel(layer: torch.nn.Module) -> None:
    parallelize_module(layer, init_device_mesh("cpu", (group.world(),)), _PLAN)
