"""Perplexity per language: the exponential of the mean negative log-likelihood of a text's tokens.

Token-weighted: exp(sum of negative log-likelihoods / number of predicted tokens), sums in float64. Bits per
byte stand beside it, because perplexities of models with different tokenizers do not compare.

The pieces are the text's sentences, or the windows where these are more: what one sentence costs a model says little
of the next one's, whereas the windows of a short text are one or two.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from surgeon.errors import InputError
from surgeon.measure.base import Batch, Measurement, Piece, Pieces, Seen, labelled
from surgeon.model.results import Figures, Measure, Quantity
from surgeon.text.windows import Tokens, Window, beginning, evaluation_windows, sentence_ends, tokenize

if TYPE_CHECKING:
    import torch

    from surgeon.recipe.schema import VerifySpec
    from surgeon.text.corpora import Corpus


@dataclass(frozen=True)
class EvaluationText:
    """One language's windows, and the bytes of text whose tokens they predict.

    `numbers` says of each predicted token, in their order, in which sentence it ends, from 0; without them each window
    is a piece.
    """

    windows: tuple[Window, ...]
    bytes: int
    numbers: tuple[int, ...] = ()


def evaluation_texts(
    tokenizer: Any, corpus: Corpus, languages: Sequence[str], spec: VerifySpec
) -> dict[str, EvaluationText]:
    """Tokenize the evaluation half of each language.

    Raises:
        InputError: a text gives no token that could be predicted, or a window has no room for any.
    """
    begin = beginning(tokenizer)
    result = {}
    for language in languages:
        text = corpus.text(language).evaluate
        tokens = tokenize(tokenizer, text)
        windows, size = evaluation_windows(tokens, begin, spec.tokens, spec.window, spec.stride or spec.window)
        if not windows:
            raise InputError(f"the text for '{language}' is too short to evaluate on: it has no token to predict")
        count = sum(len(window.labels) for window in windows)
        numbers = _sentences(tokens, text, 0 if begin else 1, count)
        result[language] = EvaluationText(tuple(windows), size, numbers if max(numbers) + 1 >= len(windows) else ())
    return result


def _sentences(tokens: Tokens, text: str, first: int, count: int) -> tuple[int, ...]:
    """Return the number of the sentence in which each of some tokens ends; those without a token have none."""
    result: list[int] = []
    last, stop = -1, first + count
    for end in sentence_ends(text):
        after = min(bisect_left(tokens.ends, end, hi=stop) + 1, stop)  # the token at the end of the sentence is its own
        if after > first + len(result):
            last += 1
            result += [last] * (after - first - len(result))
        if after == stop:
            break
    return tuple(result + [max(last, 0)] * (count - len(result)))


def window_pieces(texts: Mapping[str, EvaluationText], batch_size: int) -> Pieces:
    """Cut each language's windows into batches of one length, in their order, and number their pieces.

    Nothing is padded, as not every attention is blind to what follows.
    """
    import torch

    pieces: list[Piece] = []
    batches: list[Batch] = []
    for language, text in texts.items():
        counts = [len(window.labels) for window in text.windows]
        own = text.numbers or tuple(np.repeat(np.arange(len(counts)), counts).tolist())
        numbers = iter([len(pieces) + number for number in own])
        pieces += [Piece(language, tokens) for _, tokens in sorted(Counter(own).items())]
        for _, group in groupby(text.windows, lambda window: len(window.inputs)):
            alike = list(group)
            for start in range(0, len(alike), batch_size):
                chosen = alike[start : start + batch_size]
                ends = [(window.labels, [next(numbers) for _ in window.labels]) for window in chosen]
                batches.append(labelled(torch.tensor([window.inputs for window in chosen], dtype=torch.long), ends))
    return Pieces(pieces, batches)


class Perplexity(Measurement):
    """How surprised a model is by the text; always measured."""

    kind: ClassVar[str] = "perplexity"
    description: ClassVar[str] = "how surprised a model is by the text"

    def quantities(self) -> Sequence[Quantity]:
        """Return the one."""
        return [Quantity("perplexity", "perplexity", "", worse="more", compare="ratio")]

    def values(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        """Return the losses."""
        return {"perplexity": seen.losses}


def as_measures(figures: Figures, sizes: Mapping[str, int]) -> dict[str, Measure]:
    """Return perplexities by language; `sizes` are the bytes of text whose tokens were predicted."""
    result = {}
    for language, by_name in figures.groups.items():
        sums = by_name["perplexity"]
        pieces = tuple((nll, int(tokens)) for nll, tokens in zip(sums.totals, sums.weights, strict=True))
        total = 0.0
        for nll in sums.totals:
            total += nll
        result[language] = Measure(total, int(sum(sums.weights)), sizes[language], pieces)
    return result
