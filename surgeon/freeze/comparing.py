"""All frozen parameters of a model compared at once, and what several processes have found put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from surgeon.freeze.entries import bits
from surgeon.freeze.held import Held


def first_that_differs(items: Sequence[Held], by_value: bool = False) -> Held | None:
    """Return a parameter whose looked-at entries have other bits, or values; one comparison per dtype and device."""

    def equal(now: torch.Tensor, then: torch.Tensor) -> bool:
        return (
            torch.allclose(now.float(), then.float(), 0, 0, equal_nan=True)
            if by_value
            else torch.equal(bits(now), bits(then))
        )

    looks: dict[tuple[Any, Any], list[tuple[Held, torch.Tensor, torch.Tensor]]] = {}
    for item in items:
        seen = item.look()
        if seen is not None:
            looks.setdefault((seen[0].dtype, seen[0].device), []).append((item, *seen))
    for group in looks.values():
        found, expected = (torch.cat([each[i] for each in group]) for i in (1, 2))  # type: ignore[misc]
        if not equal(found, expected):
            return next(item for item, now, then in group if not equal(now, then))
    return None


def sum_over_processes(held: Sequence[Held], moved: list[int]) -> tuple[list[int], int]:
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
