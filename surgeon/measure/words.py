"""Which words a model does worse on: the loss of each token of one passage per language, and of kinds of tokens.

Each token of a passage is a piece of its own, so that its loss is the sum over that piece. The passages are the first
tokens that perplexity is measured on, in the same windows: nothing more is run for them.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.measure.base import UNCOUNTED, Batch, Measurement, Piece, Pieces, Seen, Subject
from surgeon.model.results import Figures, Quantity, Sums
from surgeon.recipe.fields import Count
from surgeon.text.windows import beginning, tokenize

if TYPE_CHECKING:
    import torch

_CHARACTERS = 32  # of a token, at most; of some text more than enough is tokenized once more, to know what tokens say
FIRST, LATER, UNSPACED, DIGITS, PUNCTUATION = (
    "first of a word", "later in a word", "in a script without spaces", "digits", "punctuation",
)  # fmt: skip
FREQUENT, RARE = "frequent", "rare"
_KINDS = (FIRST, LATER, UNSPACED, DIGITS, PUNCTUATION, FREQUENT, RARE)


@dataclass(frozen=True)
class Passage:
    """The beginning of a language's text: what each token says of it, the kinds that each is of, and where words begin.

    `words` are the numbers of the tokens that a word begins with; in a script without spaces each token is one.
    """

    language: str
    tokens: Sequence[str]
    kinds: Sequence[Sequence[str]]
    words: Sequence[int]


class Words(Measurement):
    """Which words a model does worse on."""

    passage: Count = Field(64, description="tokens of each language that are looked at one by one, from the first")

    kind: ClassVar[str] = "words"
    description: ClassVar[str] = "which words, and kinds of tokens, a model does worse on"
    grouped_by: ClassVar[str] = "kind of token"
    has_mean: ClassVar[bool] = False

    def quantities(self) -> Sequence[Quantity]:
        """Return the loss."""
        return [Quantity("loss", "loss of a token", "nats", worse="more", compare="difference")]

    def pieces(self, subject: Subject) -> Pieces:
        """Return each token of the passages, in the batches of perplexity."""
        import torch

        batches: dict[int, Batch] = {}
        pieces: list[Piece] = []
        passages = []
        for language in subject.languages:
            labels = []
            for at, row, position in _places(subject.windows, language, self.passage):
                of = subject.windows.batches[at]
                if at not in batches:
                    batches[at] = Batch(of.inputs, torch.full_like(of.labels, UNCOUNTED), np.full_like(of.numbers, -1))
                batches[at].labels[row, position] = of.labels[row, position]
                batches[at].numbers[row, position] = len(pieces)
                labels.append(int(of.labels[row, position]))
                pieces.append(Piece(language, 1))
            counts = _counts(subject.windows, language)
            passages.append(_passage(language, _said(subject, language, labels), labels, counts))
        return Pieces(pieces, list(batches.values()), passages)

    def values(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        """Return the losses."""
        return {"loss": seen.losses}

    def figures(self, pieces: Pieces, sums: Mapping[str, NDArray[np.float64]]) -> Figures:
        """Return the mean loss of each kind of tokens, summed by language, and the tokens' own as samples."""
        samples, start = [], 0
        each: dict[str, list[tuple[float, float]]] = {kind: [] for kind in _KINDS}
        for passage in pieces.source:
            losses = sums["loss"][start : start + len(passage.tokens)].tolist()
            start += len(losses)
            samples.append(_sample(passage, losses))
            for kind in _KINDS:
                those = [loss for loss, of in zip(losses, passage.kinds, strict=True) if kind in of]
                if those:
                    each[kind].append((math.fsum(those), float(len(those))))
        groups = {kind: {"loss": Sums(*zip(*pairs, strict=True))} for kind, pairs in each.items() if pairs}
        return Figures(groups, tuple(samples))


def _sample(passage: Passage, losses: Sequence[float]) -> dict[str, Any]:
    """Return a passage as data; a loss that is no number is None."""
    return {
        "language": passage.language,
        "tokens": list(passage.tokens),
        "losses": [round(loss, 6) if math.isfinite(loss) else None for loss in losses],
        "kinds": [list(kinds) for kinds in passage.kinds],
        "words": list(passage.words),
    }


def _places(windows: Pieces, language: str, most: int) -> Iterator[tuple[int, int, int]]:
    """Yield batch, row and position of a language's first predicted tokens, in the order of the text."""
    count = 0
    for at, batch in enumerate(windows.batches):
        for row, position in np.argwhere(batch.numbers >= 0).tolist():
            if windows.pieces[batch.numbers[row, position]].group != language:
                break  # a batch is of one language
            if count == most:
                return
            count += 1
            yield at, row, position


def _counts(windows: Pieces, language: str) -> Counter[int]:
    """Return how often each token is among those that perplexity is measured on."""
    counts: Counter[int] = Counter()
    for batch in windows.batches:
        counted = batch.numbers >= 0
        if windows.pieces[int(batch.numbers[counted][0])].group == language:
            counts.update(batch.labels.numpy()[counted].tolist())
    return counts


def _said(subject: Subject, language: str, labels: Sequence[int]) -> list[str]:
    """Return what each of a language's first tokens stands for in its text; together they are that text."""
    text = subject.corpus.text(language).evaluate
    first = 0 if beginning(subject.tokenizer) else 1
    stop = first + len(labels)
    tokens = tokenize(subject.tokenizer, text[: _CHARACTERS * (stop + 1)])
    if tokens.ids[first:stop] != tuple(labels):  # the cut changes tokens far before it
        tokens = tokenize(subject.tokenizer, text)
    ends = [0, *tokens.ends[:stop]][first:]
    data = text.encode("utf-8", "surrogatepass")
    return [data[a : max(a, b)].decode("utf-8", "surrogatepass") for a, b in pairwise(ends)]


def _passage(language: str, said: Sequence[str], labels: Sequence[int], counts: Counter[int]) -> Passage:
    whole = "".join(said)
    spaced = sum(map(str.isspace, whole)) > len(whole) / 24
    often, kinds, words, before = _frequent(counts), [], [], " "
    for number, (text, label) in enumerate(zip(said, labels, strict=True)):
        begins = bool(text) and not (spaced and _is_word(before[-1]) and _is_word(text[0]))
        if begins or number == 0:
            words.append(number)
        kind = _kind(text or before, begins, spaced)  # without text it is part of a character
        of_frequency = [FREQUENT] if label in often else [RARE] if counts[label] == 1 else []
        kinds.append([kind, *of_frequency])
        before = text or before
    return Passage(language, said, kinds, words)


def _kind(text: str, begins: bool, spaced: bool) -> str:
    if any(map(str.isdigit, text)):
        return DIGITS
    if not any(map(_is_word, text)):
        return PUNCTUATION
    return UNSPACED if not spaced else FIRST if begins else LATER


def _is_word(character: str) -> bool:
    """True for what words are made of: letters, the marks on them, and digits."""
    return unicodedata.category(character)[0] in "LMN"


def _frequent(counts: Counter[int]) -> set[int]:
    """Return the most frequent tokens that together make up half of a text; none that is there only once."""
    frequent: set[int] = set()
    rest = counts.total() / 2
    for label, count in counts.most_common():
        if rest <= 0 or count == 1:
            break
        frequent.add(label)
        rest -= count
    return frequent
