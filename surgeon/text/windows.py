"""Tokens cut into the sequences a model is scored on, and into the windows its perplexity is measured in.

BOS policy: if the tokenizer itself begins a text with BOS, every sequence and every window begins with it
(models trained so break without it); otherwise none does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tokens:
    """Token ids of a text without special tokens; `ends[i]` is the byte of the text at which token i ends."""

    ids: tuple[int, ...]
    ends: Sequence[int]


@dataclass(frozen=True)
class Window:
    """Input ids of which the last `targets` outputs are counted; `labels` are the ids they must predict."""

    inputs: tuple[int, ...]
    labels: tuple[int, ...]


def bos_token(tokenizer: Any) -> int | None:
    """Return the BOS id if the tokenizer begins a text with it, else None."""
    ids = tokenizer("a")["input_ids"]
    bos = tokenizer.bos_token_id
    return bos if bos is not None and ids and ids[0] == bos else None


def tokenize(tokenizer: Any, text: str) -> Tokens:
    """Tokenize a text without special tokens."""
    if not tokenizer.is_fast:
        ids = tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return Tokens(ids, _DecodedEnds(tokenizer, text, ids))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in encoded["offset_mapping"]]
    return Tokens(tuple(encoded["input_ids"]), tuple(_byte_at(text)[ends].tolist()))


def _byte_at(text: str) -> NDArray[np.int64]:
    """Return the byte of the text in UTF-8 at which each character begins, and that at which the last one ends."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    widths = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(widths, dtype=np.int64)])


@dataclass(frozen=True)
class _DecodedEnds(Sequence[int]):
    """Where tokens end in a text, for a tokenizer that does not say it: worked out for those that are asked for.

    Each takes a decoding of all tokens before it, so that asking for all would be quadratic in the text.
    """

    tokenizer: Any
    text: str
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...
    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        characters = len(self.tokenizer.decode(list(self.ids[: range(len(self))[at] + 1])))
        return len(self.text[:characters].encode("utf-8", "surrogatepass"))


def scoring_sequences(tokens: Tokens, bos: int | None, samples: int, length: int) -> list[tuple[int, ...]]:
    """Cut the first `samples` sequences of `length` ids each (BOS included), one after the other.

    A text shorter than one sequence gives that one, shorter; what is left at the end is dropped.
    """
    prefix = () if bos is None else (bos,)
    step = length - len(prefix)
    starts = range(0, max(len(tokens.ids) - step, 0) + 1, step)
    return [prefix + tokens.ids[start : start + step] for start in starts[:samples]]


def scoring_lengths(tokens: int, bos: bool, samples: int, length: int) -> list[int]:
    """Return the lengths of the sequences that `scoring_sequences` cuts from so many tokens."""
    step = length - bos
    full = min(tokens // step, samples)
    return [length] * full if full else [tokens + bos]


def evaluation_windows(
    tokens: Tokens, bos: int | None, limit: int, window: int, stride: int
) -> tuple[list[Window], int]:
    """Cut windows in which the first `limit` predictable tokens are each predicted once.

    Each window predicts `stride` new tokens from at most `window` inputs: BOS if there is one, then as many
    of the tokens before them as fit, at least one without BOS. Without BOS the text's first token has
    nothing to be predicted from and is not counted. Also returns the bytes of text that the counted tokens
    stand for.
    """
    first = 0 if bos is not None else 1
    ids = tokens.ids[: limit + first]
    prefix = () if bos is None else (bos,)
    windows = []
    for start in range(first, len(ids), stride):
        stop = min(start + stride, len(ids))
        anchor = start - first  # without BOS the token before the first target must be among the inputs
        before = max(0, anchor - (window - stride))
        windows.append(Window(prefix + ids[before : stop - 1], ids[start:stop]))
    if len(ids) <= first:
        return [], 0
    return windows, tokens.ends[len(ids) - 1] - (tokens.ends[0] if first else 0)
