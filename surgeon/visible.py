"""Text from files as it is shown: names, messages and answers may hold anything, and the terminal would obey."""

from __future__ import annotations

import json
import unicodedata

# Joiners and marks of direction that words of Persian, Malayalam or Arabic are written with.
_INNER_WORD = "\u200c\u200d\u200e\u200f"


def visible(text: str) -> str:
    """Return text on one line, with escapes in place of what would move the cursor or turn other text round."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def visible_lines(text: str) -> str:
    """Return text of several lines, each of them as `visible` makes it."""
    return "\n".join(visible(line) for line in text.split("\n"))


def json_escaped(line: str) -> str:
    """Return a line of JSON in which what `visible` would not show stands as JSON's own escapes, for the same data."""
    if line.isascii() and line.isprintable():
        return line
    return "".join(c if _visible(c) == c else json.dumps(c)[1:-1] for c in line)


def _visible(character: str) -> str:
    if character in "\n\t":
        return {"\n": "\u21b5", "\t": " "}[character]
    # Controls, formats such as a change of direction, surrogates, private and unassigned code points, line ends.
    strange = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    if not strange or character in _INNER_WORD:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
