"""Which language a text is in, by py3langid (`pip install '.[language]'` in a checkout), whose model lies in its wheel.

Compared with others on the shipped texts in docs/method.md.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec

from surgeon.errors import EnvironmentFailure

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


def is_language(found: str | None, code: str) -> bool:
    """True if what was found is a language, or one that identifiers take for it."""
    return found == code or any({found, code} <= pair for pair in _ALIKE)
