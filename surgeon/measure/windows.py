"""The windows of text that a model's outputs are looked at in, as pieces and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from surgeon.errors import InputError
from surgeon.measure.base import UNCOUNTED, Batch, Piece, Pieces
from surgeon.recipe.schema import VerifySpec
from surgeon.text.corpora import Corpus
from surgeon.text.windows import Window, beginning, evaluation_windows, tokenize


@dataclass(frozen=True)
class EvaluationText:
    """One language's windows, and the bytes of text whose tokens they predict."""

    windows: tuple[Window, ...]
    bytes: int


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
        tokens = tokenize(tokenizer, corpus.text(language).evaluate)
        windows, size = evaluation_windows(tokens, begin, spec.tokens, spec.window, spec.stride or spec.window)
        if not windows:
            raise InputError(f"the text for '{language}' is too short to evaluate on: it has no token to predict")
        result[language] = EvaluationText(tuple(windows), size)
    return result


def window_pieces(texts: Mapping[str, EvaluationText], batch_size: int) -> Pieces:
    """Make a piece of every window, and cut each language's windows into batches of one length, in their order.

    Nothing is padded, as not every attention is blind to what follows.
    """
    pieces: list[Piece] = []
    batches: list[Batch] = []
    for language, text in texts.items():
        for _, group in groupby(text.windows, lambda window: len(window.inputs)):
            alike = list(group)
            for start in range(0, len(alike), batch_size):
                batches.append(_batch(alike[start : start + batch_size], len(pieces)))
                pieces += [Piece(language, len(window.labels)) for window in alike[start : start + batch_size]]
    return Pieces(pieces, batches)


def _batch(windows: Sequence[Window], first: int) -> Batch:
    inputs = torch.tensor([window.inputs for window in windows], dtype=torch.long)
    labels = torch.full_like(inputs, UNCOUNTED)
    numbers = np.full(tuple(inputs.shape), -1, np.int64)
    for row, window in enumerate(windows):
        start = len(window.inputs) - len(window.labels)
        labels[row, start:] = torch.tensor(window.labels)
        numbers[row, start:] = first + row
    return Batch(inputs, labels, numbers)
