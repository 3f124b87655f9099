"""The rows of tokens in a model's embedding and output: what to train, or to keep, for a new language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from surgeon.errors import FreezeError
from surgeon.region.mask import Indices
from surgeon.region.region import Region

Tokens = Sequence[int | str | Sequence[int]]


def token_rows(model: Any, tokens: Tokens, tokenizer: Any = None) -> Region:
    """Return the rows of some tokens in a model's embedding and, where it is another parameter, in its output.

    `tokens` are ids, first and last ids of runs, and strings, for which the tokenizer is needed. Tokens that were added
    to both are tokens like all others: `freeze(model, token_rows(model, added), train_only=True)` trains them alone.

    Raises:
        FreezeError: a token has no row, or a string is no single token.
    """
    from surgeon.freeze.layout import shape_of

    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    wanted = {id(end.weight) for end in ends}
    shapes = {name: shape_of(p) for name, p in model.named_parameters() if id(p) in wanted}
    if not shapes:
        raise FreezeError(f"{type(model).__name__} has no embedding of tokens")
    try:
        ids = token_ids(tokens, min(shape[0] for shape in shapes.values()), lambda: tokenizer)
    except ValueError as error:
        raise FreezeError(str(error)) from None
    return Region.from_indices({name: rows_of(shape, ids) for name, shape in shapes.items()}, shapes)


def rows_of(shape: Sequence[int], ids: Sequence[int]) -> Indices:
    """Return the flat indices of rows, which ascend, of a tensor."""
    width = int(np.prod(shape[1:], dtype=np.int64))
    return (np.array(ids, dtype=np.int64)[:, None] * width + np.arange(width)).reshape(-1)


def token_ids(tokens: Tokens, rows: int, tokenizer: Callable[[], Any]) -> list[int]:
    """Return ids in ascending order, each once; `tokenizer` is called if a token is given as a string.

    Raises:
        ValueError: an id has no row, or a string is no single token.
    """
    ids: set[int] = set()
    for token in tokens:
        if isinstance(token, str):
            token = _id_of(token, tokenizer())
        first, last = (token[0], token[-1]) if isinstance(token, Sequence) else (token, token)
        first, last = int(first), int(last)
        if not 0 <= first <= last < rows:
            raise ValueError(
                f"token {first if first == last else f'{first} to {last}'}: the rows are those of tokens 0 to "
                f"{rows - 1}; rows that are added later train unless they are frozen then"
            )
        ids.update(range(first, last + 1))
    return sorted(ids)


def _id_of(text: str, tokenizer: Any) -> int:
    if tokenizer is None:
        raise ValueError(f"token {text!r}: which id that is, only the tokenizer says: give it, or the id")
    known = tokenizer.get_vocab().get(text)
    if known is not None:
        return int(known)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ValueError(f"{text!r} is no single token of the tokenizer, which makes {ids} of it: give the ids")
    return int(ids[0])
