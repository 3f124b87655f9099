"""Importance by first-order Taylor expansion: | theta_j * dL/dtheta_j | (Zhang et al. 2024, equation 3).

L is the mean negative log-likelihood over all predicted tokens of the sample. Two reductions over batches:

    signed      | theta_j * sum_b g_bj |     independent of how the sample is cut into batches
    absolute    sum_b | theta_j * g_bj |     the batch size is part of the result

No optimizer step is taken. Sums are float32 whatever the weights' dtype, and live in the score file itself,
which is mapped: a gradient is added there as soon as autograd has finished it and is then freed, so that at
most one parameter's gradient is alive and the sums of a model larger than memory page out by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from surgeon.errors import InputError
from surgeon.model.slots import Slot

if TYPE_CHECKING:
    import torch

Reduction = Literal["signed", "absolute"]


def accumulate(
    model: Any,
    slots: Mapping[str, Slot],
    sums: Mapping[str, torch.Tensor],
    sequences: Sequence[Sequence[int]],
    batch_size: int,
    reduction: Reduction,
    advance: Callable[[int], None],
) -> None:
    """Add the importance of every parameter on one sample into `sums` (float32, zero, the on-disk shapes).

    `sequences` are token ids of equal length; `advance` is called with the number of sequences done.

    Raises:
        InputError: the loss is not finite, so that no gradient means anything.
    """
    import torch

    predicted = sum(len(sequence) - 1 for sequence in sequences)
    device = next(model.parameters()).device
    wanted: dict[int, list[str]] = {}  # several on-disk tensors may be parts of one parameter
    for name, slot in slots.items():
        wanted.setdefault(id(slot.parameter), []).append(name)
    hooks = [_hook({name: slots[name] for name in names}, sums, reduction) for names in wanted.values()]
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    try:
        for start in range(0, len(sequences), batch_size):
            batch = torch.tensor(sequences[start : start + batch_size], device=device)
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum"
            )
            if not torch.isfinite(loss):
                raise InputError(f"the loss on the sample is {loss.item()}: the model is broken before any surgery")
            (loss / predicted).backward()  # type: ignore[no-untyped-call]
            advance(len(batch))
    finally:
        for hook in hooks:
            hook.remove()
    if reduction == "signed":
        for name, slot in slots.items():
            sums[name].mul_(slot.values().float().cpu()).abs_()


def _hook(slots: Mapping[str, Slot], sums: Mapping[str, torch.Tensor], reduction: Reduction) -> Any:
    """Consume the gradient of the one parameter that all these slots are parts of."""

    def consume(parameter: torch.nn.Parameter) -> None:
        assert parameter.grad is not None
        for name, slot in slots.items():
            gradient = slot.of(parameter.grad).float()
            if reduction == "absolute":
                gradient = (gradient * slot.values().float()).abs()
            sums[name].add_(gradient.cpu())
        parameter.grad = None

    parameter = next(iter(slots.values())).parameter
    return parameter.register_post_accumulate_grad_hook(consume)  # type: ignore[no-untyped-call]
