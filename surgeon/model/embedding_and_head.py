"""Batches on their way through a stack: how each enters the layers, and how the head is cut into chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from surgeon.errors import present
from surgeon.model.budgets import chunk_tokens
from surgeon.model.hidden_states import States
from surgeon.model.layer_stack import Arguments, Stack


def enter_all(
    stack: Stack, batches: Sequence[torch.Tensor], states: States, row: int = 0
) -> list[tuple[Arguments, ...]]:
    """Put every batch's embedding into a row of `states`; returns each batch's arguments of the layers."""
    return list(enter_some(stack, enumerate(batches), states, row).values())


def enter_some(
    stack: Stack, batches: Iterable[tuple[int, torch.Tensor]], states: States, row: int = 0
) -> dict[int, tuple[Arguments, ...]]:
    """Put the embedding's outputs of numbered batches into a row of `states`; returns, by number, their arguments.

    Batches of one shape share their arguments where these are equal, as they are unless a family computes them from
    the tokens.
    """
    shared: dict[tuple[int, ...], tuple[Arguments, ...]] = {}
    result = {}
    with stack.loaded.weights.resident(stack.outer("in"), stack.unit(0)), torch.no_grad():
        for number, ids in batches:
            call = stack.enter(ids)
            if call.hidden is not None:
                states.put(row, number, call.hidden)
            known = shared.setdefault(tuple(ids.shape), call.arguments)
            result[number] = known if _equal(known, call.arguments) else call.arguments
    return result


def _equal(left: Any, right: Any) -> bool:
    if left is right:
        return True
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, tuple):
        return isinstance(right, tuple) and len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    return type(left) is type(right) and bool(left == right)


def hidden_layout(stack: Stack, batches: Sequence[torch.Tensor]) -> tuple[list[tuple[int, ...]], torch.dtype]:
    """Return the shape of each batch's hidden state, and their dtype, found on two tokens."""
    if not stack.layers or not batches:
        return [(0,) for _ in batches], torch.float32
    with stack.loaded.weights.resident(stack.outer("in")), torch.no_grad():
        hidden = present(stack.enter(batches[0][:1, :2]).hidden)
    return [(*ids.shape, *hidden.shape[2:]) for ids in batches], hidden.dtype


def vocabulary(stack: Stack) -> int:
    """Return how many tokens a model chooses among."""
    config = stack.loaded.model.config
    return int((config.get_text_config() if hasattr(config, "get_text_config") else config).vocab_size)


def head_chunks(stack: Stack, ids: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut a batch (rows, length) into rows and positions, such that the logits of a chunk stay small."""
    rows, length = ids.shape
    tokens = chunk_tokens(vocabulary(stack), stack.loaded.device)
    together, step = max(1, tokens // length), min(tokens, length)
    for first in range(0, rows, together):
        for start in range(0, length, step):
            yield slice(first, min(first + together, rows)), slice(start, min(start + step, length))
