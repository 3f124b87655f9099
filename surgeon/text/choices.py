"""Questions made of a text: the beginning of a paragraph and four ends, of which one is its own.

All ends are of one text, begin inside a paragraph, at a word where the script has spaces, and are about as long as each
other; so nothing but what stands before tells which is right. Which are asked, and beside which others, depends on the
text and its language alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from surgeon.seeds import generator

ENDS = 4  # as most tasks of choice have: chance is a quarter
_PARTS = 4  # of a paragraph of mean length: an end is one of them, and before it stands at least another
_SHORTEST = 8  # characters of an end: a word or two, without which nothing is to be told apart
_ALIKE = 9  # of other paragraphs' ends, those nearest in length, of which wrong ones are drawn: length tells nothing


@dataclass(frozen=True)
class Question:
    """The beginning, the ends, which of them is right, and the number of the paragraph that it is made of."""

    beginning: str
    ends: tuple[str, ...]
    right: int
    paragraph: int


@dataclass(frozen=True)
class _Cut:
    paragraph: int
    beginning: str
    end: str


def questions(text: str, language: str, most: int) -> list[Question]:
    """Return at most so many questions, in the order of the text; fewer, or none, where it is short."""
    paragraphs = [line.strip() for line in text.splitlines() if line.strip()]
    length = max(sum(map(len, paragraphs)) // max(len(paragraphs), 1) // _PARTS, _SHORTEST)
    cuts = [cut for number, paragraph in enumerate(paragraphs) for cut in _cuts(number, paragraph, length)]
    random = generator(0, f"choice:{language}")
    found = []
    for at in sorted(random.permutation(len(cuts))[:most].tolist()):
        own = cuts[at]
        others = {cut.end: cut for cut in cuts if cut.paragraph != own.paragraph and cut.end != own.end}
        near = sorted(others, key=lambda end: (abs(len(end) - len(own.end)), end))[:_ALIKE]
        if len(near) < ENDS - 1:
            continue
        ends = [near[i] for i in random.permutation(len(near))[: ENDS - 1].tolist()]
        right = int(random.integers(ENDS))
        ends.insert(right, own.end)
        found.append(Question(own.beginning, tuple(ends), right, own.paragraph))
    return found


def _cuts(number: int, paragraph: str, length: int) -> list[_Cut]:
    """Cut a paragraph at every multiple of the length, if as much stands before, and nearly as much after."""
    found = []
    for start in range(length, len(paragraph), length):
        at = _word(paragraph, start, length)
        end = paragraph[at : _word(paragraph, at + length, length)]
        if len(end) >= 3 * length // 4 and paragraph[:at].strip():
            found.append(_Cut(number, paragraph[:at], end))
    return found


def _word(paragraph: str, at: int, within: int) -> int:
    """Return where the next word begins, with the space before it; the place itself if there is no space near."""
    space = paragraph.find(" ", at, at + within)
    if space >= 0:
        return space
    return at if at + within < len(paragraph) else len(paragraph)
