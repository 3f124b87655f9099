"""What is known of a language by its code: English name, script, family."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from surgeon.errors import did_you_mean


@dataclass(frozen=True)
class Language:
    """A language's English name, the script it is written in, and its family."""

    name: str
    script: str
    family: str


LANGUAGES: Mapping[str, Language] = {
    code: Language(*rest)
    for code, *rest in (
        ("ar", "Arabic", "Arabic", "Semitic"), ("cs", "Czech", "Latin", "Slavic"),
        ("da", "Danish", "Latin", "Germanic"), ("de", "German", "Latin", "Germanic"),
        ("el", "Greek", "Greek", "Hellenic"), ("en", "English", "Latin", "Germanic"),
        ("es", "Spanish", "Latin", "Romance"), ("fa", "Persian", "Arabic", "Iranian"),
        ("fi", "Finnish", "Latin", "Uralic"), ("fr", "French", "Latin", "Romance"),
        ("hu", "Hungarian", "Latin", "Uralic"), ("id", "Indonesian", "Latin", "Malayic"),
        ("it", "Italian", "Latin", "Romance"), ("ja", "Japanese", "Han and Kana", "Japonic"),
        ("ko", "Korean", "Hangul", "Koreanic"), ("ml", "Malayalam", "Malayalam", "Dravidian"),
        ("ms", "Malay", "Latin", "Malayic"), ("nl", "Dutch", "Latin", "Germanic"),
        ("no", "Norwegian", "Latin", "Germanic"), ("pl", "Polish", "Latin", "Slavic"),
        ("pt", "Portuguese", "Latin", "Romance"), ("ro", "Romanian", "Latin", "Romance"),
        ("ru", "Russian", "Cyrillic", "Slavic"), ("sv", "Swedish", "Latin", "Germanic"),
        ("sw", "Swahili", "Latin", "Bantu"), ("ta", "Tamil", "Tamil", "Dravidian"),
        ("tr", "Turkish", "Latin", "Turkic"), ("uk", "Ukrainian", "Cyrillic", "Slavic"),
        ("vi", "Vietnamese", "Latin", "Austroasiatic"), ("zh", "Chinese", "Han", "Sinitic"),
    )
}  # fmt: skip


def language(code: str, said: Mapping[str, object] | None = None) -> Language:
    """Return what is known of a language; a text under an unknown code is its own name.

    Args:
        code: of the language, as a corpus names it.
        said: what a recipe says of its `name`, `script` and `family`, which goes before what is known.
    """
    known = LANGUAGES.get(code, Language(code, "other", "other"))
    own = [str((said or {}).get(key) or getattr(known, key)) for key in ("name", "script", "family")]
    return Language(*own)


def code_meant(word: str, codes: Iterable[str], named: Callable[[str], Language] = language) -> str:
    """Return `"; did you mean 'ar' (Arabic)?"` for a language's name or a locale, else what `did_you_mean` says."""
    places = {code.lower(): code for code in codes}
    names = {named(code).name.lower(): code for code in places.values()}
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.8)
    code = names[close[0]] if close else places.get(re.split("[-_]", word.lower())[0])
    if code is None:
        return did_you_mean(word, places.values())
    return f"; did you mean '{code}' ({named(code).name})?"
