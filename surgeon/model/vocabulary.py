"""Does a model know the token ids that its tokenizer gives? Where the two are not of one model it may not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from surgeon.errors import InputError


def check_ids(model: Any, tokenizer: Any, sequences: Iterable[Sequence[int]]) -> None:
    """Make sure that a model has an embedding, and an output, for each token id.

    Raises:
        InputError: it has none for some.
    """
    _refuse_beyond(model, tokenizer, max((max(ids) for ids in sequences if ids), default=0))


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Make sure of it for all that a tokenizer can make of plain text, before there is any.

    Tokens that were added to its vocabulary, such as one for a picture, may have ids beyond: no text holds them.

    Raises:
        InputError: the model has no embedding for some.
    """
    added = tokenizer.get_added_vocab()
    own = (number for token, number in tokenizer.get_vocab().items() if token not in added)
    _refuse_beyond(model, tokenizer, max(own, default=0))


def _refuse_beyond(model: Any, tokenizer: Any, highest: int) -> None:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    rows = min(int(end.weight.shape[0]) for end in ends if getattr(end, "weight", None) is not None)
    if highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise InputError(
            f"the tokenizer gives the token id {highest} ({token!r}), but the model has embeddings for {rows} ids only"
            ": take the tokenizer that belongs to it"
        )
