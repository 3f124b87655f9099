"""Which of four ends is a paragraph's own: understanding, where perplexity may be but a habit of output.

Asked is the beginning of a paragraph of the evaluation half, with four ends. All ends are of one text, begin inside a
paragraph, at a word where the script has spaces, and are about as long as each other; so nothing but what stands before
tells which is right. Which are asked, and beside which others, depends on the text and its language alone. A model
chooses the end of the highest log-likelihood per character, as `acc_norm` of lm-evaluation-harness does; who knows
nothing is right in a quarter. Intervals are drawn over paragraphs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field

from surgeon.errors import InputError
from surgeon.inside import replacing
from surgeon.measure.base import End, Measurement, Piece, Pieces, Seen, Subject, batched
from surgeon.model.results import Figures, Quantity, Sums
from surgeon.recipe.fields import Count
from surgeon.seeds import generator
from surgeon.text.windows import beginning

if TYPE_CHECKING:
    import torch

    from surgeon.text.corpora import Corpus

PREFIX = "surgeon_choice"  # of the tasks for lm-evaluation-harness
ENDS = 4  # as most tasks of choice have: chance is a quarter
_PARTS = 4  # of a paragraph of mean length: an end is one of them, and before it stands at least another
_SHORTEST = 8  # characters of an end: a word or two, without which nothing is to be told apart
_ALIKE = 9  # of other paragraphs' ends, those nearest in length, of which wrong ones are drawn: length tells nothing
_TOKENS = 48  # of a beginning with one end, about


@dataclass(frozen=True)
class Question:
    """The beginning, the ends, which of them is right, and the number of the paragraph that it is made of."""

    beginning: str
    ends: tuple[str, ...]
    right: int
    paragraph: int


class _Cut(NamedTuple):
    paragraph: int
    beginning: str
    end: str


def questions(text: str, language: str, most: int) -> list[Question]:
    """Return at most so many questions, in the order of the text; fewer, or none, where it is short."""
    paragraphs = [line.strip() for line in text.splitlines() if line.strip()]
    length = max(sum(map(len, paragraphs)) // max(len(paragraphs), 1) // _PARTS, _SHORTEST)
    cuts = [cut for number, paragraph in enumerate(paragraphs) for cut in _cuts(number, paragraph, length)]
    random = generator(0, f"choice:{language}")
    asked = []
    for at in sorted(random.permutation(len(cuts))[:most].tolist()):
        own = cuts[at]
        others = {cut.end: cut for cut in cuts if cut.paragraph != own.paragraph and cut.end != own.end}
        near = sorted(others, key=lambda end: (abs(len(end) - len(own.end)), end))[:_ALIKE]
        if len(near) < ENDS - 1:
            continue
        ends = [near[i] for i in random.permutation(len(near))[: ENDS - 1].tolist()]
        right = int(random.integers(ENDS))
        ends.insert(right, own.end)
        asked.append(Question(own.beginning, tuple(ends), right, own.paragraph))
    return asked


def _cuts(number: int, paragraph: str, length: int) -> list[_Cut]:
    """Cut a paragraph at every multiple of the length, if as much stands before, and nearly as much after."""
    cuts = []
    for start in range(length, len(paragraph), length):
        at = _word(paragraph, start, length)
        end = paragraph[at : _word(paragraph, at + length, length)]
        if len(end) >= 3 * length // 4 and paragraph[:at].strip():
            cuts.append(_Cut(number, paragraph[:at], end))
    return cuts


def _word(paragraph: str, at: int, within: int) -> int:
    """Return where the next word begins, with the space before it; the place itself if there is no space near."""
    space = paragraph.find(" ", at, at + within)
    if space >= 0:
        return space
    return at if at + within < len(paragraph) else len(paragraph)


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

        Each end is a piece, those of a question in a row.

        Raises:
            InputError: a language's text is too short for a question.
        """
        asked: list[tuple[str, Question]] = []
        for language in subject.languages:
            of_language = questions(subject.corpus.text(language).evaluate, language, self.items)
            if not of_language:
                raise InputError(
                    f"the text for '{language}' is too short for `verify.choice`: it takes four paragraphs of some "
                    "length. Give more text, or leave `choice` out"
                )
            asked += [(language, question) for question in of_language]
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
        return Pieces(pieces, list(batched(rows, lambda length: most // length)), asked)

    def values(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        """Return the log-likelihoods."""
        return {"loglikelihood": -seen.losses}

    def figures(self, pieces: Pieces, sums: Mapping[str, NDArray[np.float64]]) -> Figures:
        """Return how many questions of each paragraph were answered rightly; not a number is no answer."""
        right: dict[str, dict[int, list[int]]] = {}
        for number, (language, question) in enumerate(pieces.source):
            likelihoods = sums["loglikelihood"][ENDS * number : ENDS * (number + 1)]
            each = likelihoods / [len(end) for end in question.ends]
            hit = bool(np.isfinite(each).all()) and int(each.argmax()) == question.right
            right.setdefault(language, {}).setdefault(question.paragraph, []).append(int(hit))
        groups = {}
        for language, by_paragraph in right.items():
            totals, weights = (tuple(float(of(hits)) for hits in by_paragraph.values()) for of in (sum, len))
            groups[language] = {"accuracy": Sums(totals, weights)}
        return Figures(groups)


def encode_pair(tokenizer: Any, before: str, after: str) -> tuple[list[int], list[int]]:
    """Tokenize a text and what follows it, without special tokens, and say where the second begins.

    As lm-evaluation-harness does: the whole is tokenized, and what it has more than the first part is the second.
    """
    first, whole = (
        list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in (before, before + after)
    )
    return (first, whole[len(first) :]) if len(whole) > len(first) else (whole[:-1], whole[-1:])


def write_choice_tasks(folder: Path, corpus: Corpus, languages: Sequence[str], items: int) -> list[Path]:
    """Write the questions as tasks `surgeon_choice_LANGUAGE` of lm-evaluation-harness; data alone, no code.

    The harness reads data by their full path, so that the folder stays where it is, or is written anew elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder, files = folder.resolve(), []
    for language in languages:
        rows = [
            {"beginning": item.beginning, "ends": list(item.ends), "right": item.right, "paragraph": item.paragraph}
            for item in questions(corpus.text(language).evaluate, language, items)
        ]
        data = folder / f"{language}.jsonl"
        task = {
            "task": f"{PREFIX}_{language}",
            "tag": PREFIX,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{beginning}}",
            "doc_to_choice": "{{ends}}",
            "doc_to_target": "right",
            "target_delimiter": "",
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
            ],
            "metadata": {"version": 1.0},
        }
        for path, text in (
            (data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)),
            (folder / f"{PREFIX}_{language}.yaml", yaml.safe_dump(task, sort_keys=False, allow_unicode=True)),
        ):
            with replacing(path) as part:
                part.write_text(text, encoding="utf-8")
            files.append(path)
    return files
