"""Where tokens end in a text, with tokenizers that say it and with those that do not."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from conftest import byte_tokenizer
from hypothesis import given

from surgeon.errors import InputError
from surgeon.text.windows import (
    Tokens,
    beginning,
    evaluation_windows,
    new_tokens,
    predicted,
    scoring_lengths,
    scoring_sequences,
    tokenize,
)

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
    size = evaluation_windows(tokens, (), limit=200, window=64, stride=64)[1]
    assert len(slow.decode(list(tokens.ids[:201])).encode()) - len(slow.decode(list(tokens.ids[:1])).encode()) == size


def test_what_is_decoded_does_not_grow_with_the_square_of_the_text(slow: Any) -> None:
    tokens = tokenize(slow, TEXT)
    type(slow).decoded = 0
    evaluation_windows(tokens, (), limit=100_000, window=64, stride=64)
    assert type(slow).decoded <= len(tokens.ids) + 1


@given(st.integers(0, 60), st.integers(0, 3), st.integers(1, 5), st.integers(4, 12))
def test_lengths_are_those_of_the_sequences(count: int, begun: int, samples: int, length: int) -> None:
    tokens = Tokens(tuple(range(count)), tuple(range(1, count + 1)))
    begin = (901, 902, 903)[:begun]
    cut = scoring_sequences(tokens, begin, samples, length)
    assert scoring_lengths(count, begun, samples, length) == [len(sequence) for sequence in cut]
    assert all(sequence[:begun] == begin for sequence in cut)
    for sequence in cut:  # every token of the text that has something before it
        assert predicted(len(sequence), begun) == len([i for i, token in enumerate(sequence) if i and token < 900])


@pytest.mark.parametrize(
    ("template", "begin"),
    [("<s> $A", (0,)), ("</s> $A", (1,)), ("</s> <s> $A", (1, 0)), ("<s> <s> $A </s>", (0, 0)), ("$A <s> </s>", ())],
)
def test_what_a_text_begins_with_are_all_special_tokens_before_it(template: str, begin: tuple[int, ...]) -> None:
    assert beginning(byte_tokenizer(bos=True, template=template)) == begin
    assert beginning(byte_tokenizer()) == ()


def test_a_tokenizer_that_knows_no_letter_still_says_what_it_begins_with() -> None:
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE({"<s>": 0, "<t>": 1, "\u0ba4": 2}, []))
    core.add_special_tokens(["<s>", "<t>"])
    core.post_processor = processors.TemplateProcessing(single="<s> <t> $A", special_tokens=[("<s>", 0), ("<t>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", additional_special_tokens=["<t>"])
    assert tokenizer("a", add_special_tokens=False)["input_ids"] == []
    assert beginning(tokenizer) == (0, 1)


def test_special_tokens_that_leave_no_room_are_refused() -> None:
    tokens = Tokens(tuple(range(9)), tuple(range(1, 10)))
    assert new_tokens(3, 3, 2) == 1
    for cut in (
        lambda: scoring_sequences(tokens, (0, 1), 1, 2), lambda: evaluation_windows(tokens, (0, 1, 2), 9, 2, 2)
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"no room for text: the tokenizer begins every text with [23] special"):
            cut()
