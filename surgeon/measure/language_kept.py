"""In which language a model goes on: beginnings of paragraphs, continued, and what the continuations are written in.

The beginnings are those of the evaluation half, the same characters for every model and tokenizer. Always the likeliest
token follows, so that nothing is drawn by lot. Loops are seen by the share of character 4-grams that are different ones
(distinct-n of Li et al. 2016, over characters, since not every script has words between spaces).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.errors import EnvironmentFailure
from surgeon.measure.base import Measurement, Pieces, Seen, Subject, evenly
from surgeon.model.results import Continuation, Figures, Quantity, Sums
from surgeon.recipe.fields import Count

if TYPE_CHECKING:
    import torch

    from surgeon.model.editing import Variant
    from surgeon.model.layer_stack import Stack
    from surgeon.progress import Progress

_SAME: Mapping[str, str] = {"nb": "no", "nn": "no", "wuu": "zh"}  # written alike, or norms of one language
# No identifier tells these two apart on the Declaration: they are standards of one language.
_ALIKE = (frozenset({"id", "ms"}),)
_LETTERS = 3  # of a text, at least, for it to be in a language: what is shorter is a number or an abbreviation


def require_identifier() -> None:
    """Make sure that the identifier is installed.

    Raises:
        EnvironmentFailure: it is not.
    """
    if find_spec("py3langid") is None:
        raise EnvironmentFailure(
            "py3langid is not installed, which tells languages apart: `pip install '.[language]'` in a checkout"
        )


@cache
def known_languages() -> frozenset[str]:
    """Return the codes of the languages that can be told apart, ISO 639-1."""
    require_identifier()
    import py3langid

    return frozenset(_SAME.get(code, code) for code, _ in py3langid.rank("a"))


def identify(text: str) -> str | None:
    """Return the code of the language that a text is in; None if it has hardly a letter."""
    if sum(unicodedata.category(letter).startswith("L") for letter in text) < _LETTERS:
        return None
    require_identifier()
    import py3langid

    code = str(py3langid.classify(text)[0])
    return _SAME.get(code, code)


def is_language(identified: str | None, code: str) -> bool:
    """True if a text was identified as a language, or as one that identifiers take for it."""
    return identified == code or any({identified, code} <= pair for pair in _ALIKE)


_CHARACTERS, _WITHOUT_SPACES = 48, 16  # of a beginning, about; of one in a script without spaces
_GRAM = 4
_NO_TEXT = "no text"


class LanguageKept(Measurement):
    """Whether a model goes on in the language of a text."""

    kind: ClassVar[str] = "language_kept"
    description: ClassVar[str] = "whether a model goes on in the language of a text"

    prompts: Count = Field(4, description="beginnings of paragraphs per language, at most")
    new_tokens: Count = Field(24, description="to go on with, at most; always the likeliest token")

    def tokens(self) -> int:
        """Return about how many tokens are run for a language."""
        return self.prompts * self.new_tokens

    def check(self) -> None:
        """Make sure that the identifier is installed."""
        require_identifier()

    def depends(self) -> Mapping[str, str] | None:
        """Return the identifier's release."""
        require_identifier()
        from importlib.metadata import version

        return {"py3langid": version("py3langid")}

    def quantities(self) -> Sequence[Quantity]:
        """Return the share of continuations in the language, and how many n-grams are different ones."""
        return [
            Quantity("kept", "goes on in the language of the text", "", "less", "difference", share=True),
            Quantity("distinct", "different character 4-grams in what is said", "", "less", "difference", share=True),
        ]

    def pieces(self, subject: Subject) -> Pieces:
        """Return the beginnings, each with its language; of a language that the identifier does not know, none."""
        begun = [
            (language, start)
            for language in subject.languages
            if language in known_languages()
            for start in beginnings(subject.corpus.text(language).evaluate, self.prompts)
        ]
        return Pieces([], [], begun)

    def values(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        """Return nothing: outputs are not looked at."""
        return {}

    def work(
        self, stack: Stack, variants: Sequence[Variant], pieces: Pieces, progress: Progress
    ) -> Mapping[str, Sequence[Continuation]]:
        """Have each model go on; one that does not stay in memory is read once for every new token, as a note says."""
        from surgeon.model.continuations import continue_prompts, encode_prompts

        prompts = encode_prompts(stack, [start for _, start in pieces.source], self.new_tokens)
        if not prompts:
            return {variant.name: [] for variant in variants}
        if not stack.loaded.weights.stays:
            progress.note(
                f"to measure the language that the models continue in, their weights are read {self.new_tokens} times"
            )
        return continue_prompts(stack, variants, prompts, self.new_tokens, progress)

    def figures_with(
        self, pieces: Pieces, sums: Mapping[str, NDArray[np.float64]], own: Sequence[Continuation]
    ) -> Figures:
        """Identify the languages of what was said."""
        samples = [_sample(language, said) for (language, _), said in zip(pieces.source, own, strict=False)]
        groups: dict[str, dict[str, Sums]] = {}
        for language in dict.fromkeys(sample["language"] for sample in samples):
            those = [sample for sample in samples if sample["language"] == language]
            groups[language] = {
                name: Sums(tuple(float(sample[name]) for sample in those), (1.0,) * len(those))
                for name in ("kept", "distinct")
            }
        return Figures(groups, tuple(samples), remarks={name: slips(samples, name) for name in groups})


def _sample(language: str, said: Continuation) -> dict[str, Any]:
    identified, keys = identify(said.continuation), ("prompt", "continuation", "stopped")
    return {
        "language": language,
        **{key: getattr(said, key) for key in keys},
        "identified": identified,
        "kept": is_language(identified, language),
        "distinct": distinct(said.continuation),
    }


def slips(samples: Sequence[Mapping[str, Any]], language: str) -> str:
    """Say what a language's texts went on in instead, the most frequent first: `en 2, no text 1`; nothing if in it."""
    others = [one["identified"] for one in samples if one["language"] == language and not one["kept"]]
    return ", ".join(f"{name or _NO_TEXT} {count}" for name, count in Counter(others).most_common())


def distinct(text: str) -> float:
    """Return the share of a text's character 4-grams that are different ones; 0 of a text that has none."""
    grams = [text[at : at + _GRAM] for at in range(len(text) - _GRAM + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def beginnings(text: str, count: int) -> list[str]:
    """Return the beginnings of paragraphs that lie evenly over a text, cut between words where it has spaces.

    Paragraphs that are hardly longer than a beginning are passed over.
    """
    starts = []
    for line in text.splitlines():
        words = line.split(" ")
        spaced = len(words) > len(line) / 24
        cut = " ".join(words)[: _CHARACTERS if spaced else _WITHOUT_SPACES]
        if len(cut) == len(line) or len(line) < 1.5 * len(cut):
            continue
        starts.append(cut.rpartition(" ")[0] if spaced and not line[len(cut)].isspace() and " " in cut else cut)
    return evenly(starts, count)
