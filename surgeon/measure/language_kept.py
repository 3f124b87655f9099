"""In which language a model goes on: beginnings of paragraphs, continued, and what the continuations are written in.

The beginnings are those of the evaluation half, the same characters for every model and tokenizer. Always the likeliest
token follows, so that nothing is drawn by lot. Loops are seen by the share of character 4-grams that are different ones
(distinct-n of Li et al. 2016, over characters, since not every script has words between spaces).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.measure.base import OwnWork, Pieces, Seen, Subject
from surgeon.model.results import Continuation, Figures, Quantity, Sums
from surgeon.recipe.fields import Count
from surgeon.text.identify import identify, is_language, known_languages, require_identifier

if TYPE_CHECKING:
    import torch

    from surgeon.model.editing import Variant
    from surgeon.model.layer_stack import Stack
    from surgeon.progress import Progress

_CHARACTERS, _WITHOUT_SPACES = 48, 16  # of a beginning, about; of one in a script without spaces
_GRAM = 4
_NO_TEXT = "no text"


@dataclass(frozen=True)
class _Begun(Pieces):
    """The beginnings, each with its language."""

    begun: Sequence[tuple[str, str]] = ()


class LanguageKept(OwnWork):
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
        """Return the beginnings; of a language that the identifier does not know, none."""
        begun = [
            (language, start)
            for language in subject.languages
            if language in known_languages()
            for start in beginnings(subject.corpus.text(language).evaluate, self.prompts)
        ]
        return _Begun([], [], begun)

    def values(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        """Return nothing: outputs are not looked at."""
        return {}

    def work(
        self, stack: Stack, variants: Sequence[Variant], pieces: Pieces, progress: Progress
    ) -> Mapping[str, Sequence[Continuation]]:
        """Have each model go on; one that does not stay in memory is read once for every new token, as a note says."""
        from surgeon.model.continuations import continue_prompts, encode_prompts

        asked: Any = pieces
        prompts = encode_prompts(stack, [start for _, start in asked.begun], self.new_tokens)
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
        asked: Any = pieces
        samples = [_sample(language, said) for (language, _), said in zip(asked.begun, own, strict=False)]
        groups: dict[str, dict[str, Sums]] = {}
        for language in dict.fromkeys(sample["language"] for sample in samples):
            those = [sample for sample in samples if sample["language"] == language]
            groups[language] = {
                name: Sums(tuple(float(sample[name]) for sample in those), (1.0,) * len(those))
                for name in ("kept", "distinct")
            }
        return Figures(groups, tuple(samples), remarks={name: slips(samples, name) for name in groups})


def _sample(language: str, said: Continuation) -> dict[str, Any]:
    found = identify(said.continuation)
    return {
        "language": language,
        "prompt": said.prompt,
        "continuation": said.continuation,
        "stopped": said.stopped,
        "identified": found,
        "kept": is_language(found, language),
        "distinct": distinct(said.continuation),
    }


def slips(samples: Sequence[Mapping[str, Any]], language: str) -> str:
    """Say what a language's texts went on in instead, the most frequent first: `en 2, no text 1`; nothing if in it."""
    found = Counter(one["identified"] or _NO_TEXT for one in samples if one["language"] == language and not one["kept"])
    return ", ".join(f"{name} {count}" for name, count in found.most_common())


def distinct(text: str) -> float:
    """Return the share of a text's character 4-grams that are different ones; 0 of a text that has none."""
    grams = [text[at : at + _GRAM] for at in range(len(text) - _GRAM + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def beginnings(text: str, count: int) -> list[str]:
    """Return the beginnings of paragraphs that lie evenly over a text, cut between words where it has spaces.

    Paragraphs that are hardly longer than a beginning are passed over.
    """
    found = []
    for line in text.splitlines():
        words = line.split(" ")
        spaced = len(words) > len(line) / 24
        cut = " ".join(words)[: _CHARACTERS if spaced else _WITHOUT_SPACES]
        if len(cut) == len(line) or len(line) < 1.5 * len(cut):
            continue
        found.append(cut.rpartition(" ")[0] if spaced and not line[len(cut)].isspace() and " " in cut else cut)
    step = max(len(found) / count, 1)
    return [found[int(number * step)] for number in range(min(count, len(found)))]
