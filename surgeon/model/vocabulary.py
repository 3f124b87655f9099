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
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    rows = min(int(end.weight.shape[0]) for end in ends if getattr(end, "weight", None) is not None)
    highest = max((max(ids) for ids in sequences if ids), default=0)
    if highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise InputError(
            f"the tokenizer gives the token id {highest} ({token!r}), but the model has embeddings for {rows} ids only"
            ": take the tokenizer that belongs to it"
        )
