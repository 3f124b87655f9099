"""A language that was named another way than by its code is told with the code that was meant."""

from __future__ import annotations

import pytest

from surgeon.errors import InputError
from surgeon.recipe.corpus import TextSpec, open_corpus
from surgeon.text.corpora import builtin_corpus
from surgeon.text.languages import code_meant

CODES = builtin_corpus("udhr30").languages


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("Arabic", "; did you mean 'ar' (Arabic)?"), ("chinese", "; did you mean 'zh' (Chinese)?"),
        ("Portugese", "; did you mean 'pt' (Portuguese)?"), ("zh-Hans", "; did you mean 'zh' (Chinese)?"),
        ("EN_us", "; did you mean 'en' (English)?"), ("eng", "; did you mean 'en'?"),
    ],
)  # fmt: skip
def test_names_and_locales_lead_to_codes(word: str, said: str) -> None:
    assert code_meant(word, CODES) == said


def test_what_is_like_no_language_is_told_the_codes() -> None:
    assert code_meant("q!", CODES).startswith("; known: ar, cs")
    assert code_meant("Arabic", ["en"]) == "; known: en"


def test_a_corpus_knows_the_names_that_its_recipe_gives() -> None:
    corpus = open_corpus({"yo": TextSpec(file="yo.txt", name="Yoruba"), "en": "en.txt"})
    with pytest.raises(InputError, match=r"no text for 'yoruba'; did you mean 'yo' \(Yoruba\)\?"):
        corpus.text("yoruba")
