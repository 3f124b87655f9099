"""Where tokens end in a text, with tokenizers that say it and with those that do not."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from surgeon.text.windows import Tokens, evaluation_windows, scoring_lengths, scoring_sequences, tokenize

TEXT = "Alle Menschen — 人人生而自由 — sind frei.\n" * 500


@pytest.fixture(scope="module")
def slow() -> Any:
    """A tokenizer of three bytes in every four to a token of its own, written in Python; counts what it decodes."""
    from transformers import ByT5Tokenizer

    class Counting(ByT5Tokenizer):  # type: ignore[misc]
        decoded = 0

        def decode(self, token_ids: Any, **settings: Any) -> Any:
            Counting.decoded += len(token_ids)
            return super().decode(token_ids, **settings)

    return Counting()


def test_a_tokenizer_that_says_no_offsets_gives_the_bytes_of_what_it_decodes(slow: Any) -> None:
    assert not slow.is_fast
    tokens = tokenize(slow, TEXT)
    size = evaluation_windows(tokens, None, limit=200, window=64, stride=64)[1]
    assert len(slow.decode(list(tokens.ids[:201])).encode()) - len(slow.decode(list(tokens.ids[:1])).encode()) == size


def test_what_is_decoded_does_not_grow_with_the_square_of_the_text(slow: Any) -> None:
    tokens = tokenize(slow, TEXT)
    type(slow).decoded = 0
    evaluation_windows(tokens, None, limit=100_000, window=64, stride=64)
    assert type(slow).decoded <= len(tokens.ids) + 1


@given(st.integers(0, 60), st.booleans(), st.integers(1, 5), st.integers(2, 12))
def test_lengths_are_those_of_the_sequences(count: int, bos: bool, samples: int, length: int) -> None:
    tokens = Tokens(tuple(range(count)), tuple(range(1, count + 1)))
    cut = scoring_sequences(tokens, 7 if bos else None, samples, length)
    assert scoring_lengths(count, bos, samples, length) == [len(sequence) for sequence in cut]
