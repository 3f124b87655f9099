"""Which of four ends is a paragraph's own: understanding, where perplexity may be but a habit of output.

Asked is the beginning of a paragraph of the evaluation half, with four ends of the same language that are alike in
length (`text.choices`). A model chooses the end of the highest log-likelihood per character, as `acc_norm` of
lm-evaluation-harness does; who knows nothing is right in a quarter. Intervals are drawn over paragraphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.errors import InputError
from surgeon.measure.base import Measurement, Piece, Pieces, Seen, Subject
from surgeon.measure.batches import End, batched
from surgeon.model.results import Figures, Quantity, Sums
from surgeon.recipe.fields import Count
from surgeon.text.choices import ENDS, Question, questions
from surgeon.text.windows import beginning

if TYPE_CHECKING:
    import torch

_TOKENS = 48  # of a beginning with one end, about


@dataclass(frozen=True)
class _Asked(Pieces):
    """Each end is a piece, those of a question in a row; `asked` are languages and questions in the same order."""

    asked: Sequence[tuple[str, Question]] = ()


class Choice(Measurement):
    """Which of four ends of a paragraph is its own."""

    items: Count = Field(16, description="questions per language, at most; of four ends each")

    kind: ClassVar[str] = "choice"
    description: ClassVar[str] = "which of four ends of a paragraph is its own"

    def quantities(self) -> Sequence[Quantity]:
        """Return the share of right answers."""
        title = "own end chosen out of four"
        return [Quantity("accuracy", title, "", "less", "difference", share=True, chance=1 / ENDS)]

    def tokens(self) -> int:
        """Return about how many tokens are run for a language."""
        return self.items * ENDS * _TOKENS

    def pieces(self, subject: Subject) -> Pieces:
        """Return the ends, each after its beginning; of a beginning that is too long for the window, the last part.

        Raises:
            InputError: a language's text is too short for a question.
        """
        asked: list[tuple[str, Question]] = []
        for language in subject.languages:
            made = questions(subject.corpus.text(language).evaluate, language, self.items)
            if not made:
                raise InputError(
                    f"the text for '{language}' is too short for `verify.choice`: it takes four paragraphs of some "
                    "length. Give more text, or leave `choice` out"
                )
            asked += [(language, question) for question in made]
        begin, room = beginning(subject.tokenizer), subject.window
        rows: list[tuple[list[int], End]] = []
        pieces: list[Piece] = []
        for language, question in asked:
            for end in question.ends:
                before, after = encode_pair(subject.tokenizer, question.beginning, end)
                ids = [*begin, *[*before, *after][-(room + 1 - len(begin)) :]]
                chosen = after[-len(ids) + 1 :]
                rows.append((ids[:-1], (chosen, [len(pieces)] * len(chosen))))
                pieces.append(Piece(language, len(chosen)))
        most = subject.batch_size * room
        return _Asked(pieces, list(batched(rows, lambda length: most // length)), asked)

    def values(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        """Return the log-likelihoods."""
        return {"loglikelihood": -seen.losses}

    def figures(self, pieces: Pieces, sums: Mapping[str, NDArray[np.float64]]) -> Figures:
        """Return how many questions of each paragraph were answered rightly; not a number is no answer."""
        right: dict[str, dict[int, list[int]]] = {}
        for number, (language, question) in enumerate(cast(_Asked, pieces).asked):
            likelihoods = sums["loglikelihood"][ENDS * number : ENDS * (number + 1)]
            each = likelihoods / [len(end) for end in question.ends]
            hit = bool(np.isfinite(each).all()) and int(each.argmax()) == question.right
            right.setdefault(language, {}).setdefault(question.paragraph, []).append(int(hit))
        return Figures(
            {
                language: {
                    "accuracy": Sums(
                        tuple(float(sum(hits)) for hits in by_paragraph.values()),
                        tuple(float(len(hits)) for hits in by_paragraph.values()),
                    )
                }
                for language, by_paragraph in right.items()
            }
        )


def encode_pair(tokenizer: Any, before: str, after: str) -> tuple[list[int], list[int]]:
    """Tokenize a text and what follows it, without special tokens, and say where the second begins.

    As lm-evaluation-harness does: the whole is tokenized, and what it has more than the first part is the second.
    """
    first, whole = (
        list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in (before, before + after)
    )
    return (first, whole[len(first) :]) if len(whole) > len(first) else (whole[:-1], whole[-1:])
