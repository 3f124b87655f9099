"""Tokens cut into the sequences a model is scored on, and into the windows its perplexity is measured in.

Every sequence and every window begins with the special tokens that the tokenizer itself begins a text with: BOS, two
tokens, or none. Models break without what each of their training texts began with. No such token is ever predicted.
Sentences are the pieces that say how much a figure depends on which text was at hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import InputError

_PROBE = "a 1 \u0430 \u0627 \u4e2d"  # letters of several scripts, of which a vocabulary should know one
# A line, or a sentence in it: after a full stop and its kind comes a space, but not after 。 and its kind.
_END = re.compile(r"""[.!?؟।…]+["'»”’)\]]*(?=\s)|[。！？]+[」』”’）]*|\n""")
_SHORTEST = 24  # bytes; what is shorter is an abbreviation or a number, and goes with what follows


def no_room(begun: int) -> str:
    """Say of a length of sequences or windows that special tokens alone fill it."""
    return f"has no room for text: the tokenizer begins every text with {begun} special tokens"


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


def beginning(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids of the special tokens that the tokenizer begins every text with."""
    whole, bare = (tuple(tokenizer(_PROBE, add_special_tokens=added)["input_ids"]) for added in (True, False))
    for count in range(len(whole) - len(bare) + 1):
        if whole[count : count + len(bare)] == bare and bare:
            return whole[:count]
    special = set(tokenizer.all_special_ids)  # the text gives no token, or others where special ones stand beside it
    return tuple(takewhile(special.__contains__, whole))


def new_tokens(begun: int, window: int, stride: int) -> int:
    """Return how many tokens a window predicts: `stride`, or fewer where special tokens take the room of inputs.

    Raises:
        InputError: the special tokens alone fill the window.
    """
    room = window - max(begun - 1, 0)
    if room < 1:
        raise InputError(f"a window of {window} tokens {no_room(begun)}")
    return min(stride, room)


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


def scoring_sequences(tokens: Tokens, begin: tuple[int, ...], samples: int, length: int) -> list[tuple[int, ...]]:
    """Cut the first `samples` sequences of `length` ids each, one after the other; each begins with `begin`.

    A text shorter than one sequence gives that one, shorter; what is left at the end is dropped.

    Raises:
        InputError: `begin` alone fills a sequence.
    """
    step = _text_tokens(len(begin), length)
    starts = range(0, max(len(tokens.ids) - step, 0) + 1, step)
    return [begin + tokens.ids[start : start + step] for start in starts[:samples]]


def scoring_lengths(tokens: int, begun: int, samples: int, length: int) -> list[int]:
    """Return the lengths of the sequences that `scoring_sequences` cuts from so many tokens."""
    full = min(tokens // _text_tokens(begun, length), samples)
    return [length] * full if full else [tokens + begun]


def predicted(length: int, begun: int) -> int:
    """Return how many tokens of a sequence are predicted: those of the text that have something before them."""
    return max(length - max(begun, 1), 0)


def _text_tokens(begun: int, length: int) -> int:
    if length <= begun:
        raise InputError(f"a sequence of {length} tokens {no_room(begun)}")
    return length - begun


def evaluation_windows(
    tokens: Tokens, begin: tuple[int, ...], limit: int, window: int, stride: int
) -> tuple[list[Window], int]:
    """Cut windows in which the first `limit` predictable tokens are each predicted once.

    Each window predicts `stride` new tokens (or as many as `new_tokens` says) from at most `window` inputs: `begin`,
    then as many of the tokens before them as fit. With nothing to begin with it is at least one, so that the text's
    first token has nothing to be predicted from and is not counted. Also returns the bytes of text that the counted
    tokens stand for.

    Raises:
        InputError: `begin` alone fills a window.
    """
    first = 0 if begin else 1
    ids = tokens.ids[: limit + first]
    stride = new_tokens(len(begin), window, stride)
    context = window - max(len(begin) - 1, 0) - stride
    windows = []
    for start in range(first, len(ids), stride):
        stop = min(start + stride, len(ids))
        anchor = start - first  # with nothing to begin with, the token before the first target must be among the inputs
        before = max(0, anchor - context)
        windows.append(Window(begin + ids[before : stop - 1], ids[start:stop]))
    if len(ids) <= first:
        return [], 0
    return windows, tokens.ends[len(ids) - 1] - (tokens.ends[0] if first else 0)


def sentence_ends(text: str) -> list[int]:
    """Return the bytes of a text in UTF-8 at which its sentences end, the last of them the end of the text."""
    ends: list[int] = []
    before = at = 0
    for end in _END.finditer(text):
        at += len(text[before : end.end()].encode("utf-8", "surrogatepass"))
        before = end.end()
        if at - (ends[-1] if ends else 0) >= _SHORTEST:
            ends.append(at)
    whole = at + len(text[before:].encode("utf-8", "surrogatepass"))
    if ends and whole - ends[-1] < _SHORTEST:
        ends[-1] = whole
    elif not ends or ends[-1] < whole:
        ends.append(whole)
    return ends
