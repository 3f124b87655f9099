"""What is known of a language by its code: English name, script, family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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


def language(code: str) -> Language:
    """Return what is known of a language; a text under another code is its own name."""
    return LANGUAGES.get(code, Language(code, "other", "other"))


def language_name(code: str) -> str:
    """Return a language's English name, or its code."""
    return language(code).name
