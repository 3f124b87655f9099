"""Where the sentences of a text end: the pieces that say how much a figure depends on which text was at hand."""

from __future__ import annotations

import re

# A line, or a sentence in it: after a full stop and its kind comes a space, but not after 。 and its kind.
_END = re.compile(r"""[.!?؟।…]+["'»”’)\]]*(?=\s)|[。！？]+[」』”’）]*|\n""")
_SHORTEST = 24  # bytes; what is shorter is an abbreviation or a number, and goes with what follows


def sentence_ends(text: str) -> list[int]:
    """Return the bytes of a text in UTF-8 at which its sentences end, the last of them the end of the text."""
    ends: list[int] = []
    before = at = 0
    for found in _END.finditer(text):
        at += len(text[before : found.end()].encode("utf-8", "surrogatepass"))
        before = found.end()
        if at - (ends[-1] if ends else 0) >= _SHORTEST:
            ends.append(at)
    whole = at + len(text[before:].encode("utf-8", "surrogatepass"))
    if ends and whole - ends[-1] < _SHORTEST:
        ends[-1] = whole
    elif not ends or ends[-1] < whole:
        ends.append(whole)
    return ends
