"""Bits per byte, paragraph by paragraph: what models with different tokenizers can be compared in.

A paragraph is a piece, so that what is said of a language rests on as many independent texts as it has paragraphs. Each
begins anew, after what the tokenizer begins a text with, or else the BOS or EOS token, so that all of its bytes are
predicted; one that is longer than the window goes on in further windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.errors import InputError
from surgeon.measure.base import End, Measurement, Piece, Pieces, Seen, Subject, batched, evenly
from surgeon.model.results import Figures, Quantity
from surgeon.recipe.fields import Count
from surgeon.text.windows import beginning, tokenize

if TYPE_CHECKING:
    import torch

BITS = "bits"


class Paragraphs(Measurement):
    """Bits per byte of paragraphs of each language."""

    kind: ClassVar[str] = "paragraphs"
    description: ClassVar[str] = "bits per byte of a language's paragraphs"

    paragraphs: Count = Field(40, description="of each language, at most, evenly over its text")

    def quantities(self) -> Sequence[Quantity]:
        """Return bits per byte."""
        return [Quantity(BITS, "bits per byte", "bits per byte", "more", "difference")]

    def pieces(self, subject: Subject) -> Pieces:
        """Return the paragraphs of all languages, in windows; their source are their bytes in UTF-8.

        Raises:
            InputError: a language has none.
        """
        begin, special = beginning(subject.tokenizer), (subject.tokenizer.bos_token_id, subject.tokenizer.eos_token_id)
        begin = begin or tuple(int(token) for token in special if token is not None)[:1]
        pieces: list[Piece] = []
        sizes: list[float] = []
        rows: list[tuple[tuple[int, ...], End]] = []
        for language in subject.languages:
            lines = [line for line in subject.corpus.text(language).evaluate.splitlines() if line.strip()]
            if not lines:
                raise InputError(f"the text for '{language}' has no paragraph")
            for line in evenly(lines, self.paragraphs):
                ids = tokenize(subject.tokenizer, line).ids
                rows += [
                    (inputs, (end, [len(pieces)] * len(end))) for inputs, end in _windows(ids, begin, subject.window)
                ]
                pieces.append(Piece(language, len(ids)))
                sizes.append(float(len(line.encode())))
        return Pieces(pieces, list(batched(rows, lambda length: subject.batch_size)), sizes)

    def values(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        """Return the losses in bits."""
        return {BITS: seen.losses / math.log(2)}

    def figures(self, pieces: Pieces, sums: Mapping[str, NDArray[np.float64]]) -> Figures:
        """Return bits by paragraph, weighted by bytes."""
        by_group = pieces.by_group(sums[BITS], pieces.source)
        return Figures({language: {BITS: bits} for language, bits in by_group.items()})


def _windows(ids: Sequence[int], begin: tuple[int, ...], window: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut a paragraph: inputs, and the ids that their last outputs predict."""
    room = max(window - max(len(begin) - 1, 0), 1)
    first = 0 if begin else 1
    windows = []
    for start in range(first, len(ids), room):
        end = tuple(ids[start : start + room])
        windows.append(((*begin, *ids[start - first : start], *end)[:-1], end))
    return windows
