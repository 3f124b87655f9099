"""Chance: the distribution by plain integration, marks by their promise, and pieces of text by their bytes."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from transformers import AutoTokenizer

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.measure.perplexity import evaluation_texts
from surgeon.measure.uncertainty import effective, probability, survives, two_sided
from surgeon.model.results import Sums
from surgeon.recipe.schema import VerifySpec
from surgeon.text.corpora import builtin_corpus
from surgeon.text.windows import sentence_ends


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30])
@pytest.mark.parametrize("t", [0.0, 0.3, 2.2, -6.0])
def test_the_distribution_is_student_s(t: float, freedom: int) -> None:
    x = np.linspace(0, abs(t), 200_001)
    norm = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    density = norm * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    assert two_sided(t, freedom) == pytest.approx(1 - 2 * np.trapezoid(density, x), abs=1e-8)


def pieces(random: np.random.Generator, effect: float, count: int = 9) -> tuple[Sums, Sums]:
    tokens = random.integers(20, 60, count).astype(float)
    before = tokens * random.normal(4, 1, count)
    after = before + tokens * random.normal(effect, 0.1, count)
    return Sums(tuple(before), tuple(tokens)), Sums(tuple(after), tuple(tokens))


def test_of_thirty_languages_chance_marks_few_and_a_change_of_some_is_found() -> None:
    """Where nothing changed, 5 % look hurt one by one, but a mark stands in one run of twenty only."""
    random = np.random.default_rng(0)
    alone, runs = 0, 0
    for _ in range(100):
        found = [probability(*pieces(random, 0.0)) for _ in range(30)]
        alone += sum(p is not None and p <= 0.05 for p in found)
        runs += any(survives(found))
    assert 0.03 <= alone / 3000 <= 0.08
    assert runs <= 14
    mixed = survives([probability(*pieces(random, 0.5 if i < 10 else 0.0)) for i in range(30)])
    assert all(mixed[:10])
    assert sum(mixed[10:]) <= 2


def test_what_is_broken_or_alone_is_no_discovery() -> None:
    one, two = Sums((1.0,), (2.0,)), Sums((1.0, 2.0), (2.0, 2.0))
    assert probability(one, one) is None
    assert probability(two, Sums((1.0, 2.0), (2.0, 3.0))) is None
    assert probability(two, two) == 1.0
    assert probability(two, Sums((math.inf, 2.0), (2.0, 2.0))) == 0.0  # beyond numbers, and no chance
    assert math.isnan(probability(two, Sums((math.nan, 2.0), (2.0, 2.0))) or 0.0)
    assert survives([None, math.nan, 0.5]) == [False, False, False]
    # By hand: of four tests the limits are 0.0125, 0.025, 0.0375, 0.05; the third holds, and so do those before it.
    assert survives([0.03, 0.2, 0.02, 0.037]) == [True, False, True, True]
    assert effective(Sums((0.0,) * 3, (10.0, 10.0, 0.0))) == 2.0


def test_sentences_end_where_they_do() -> None:
    text = (
        "Human rights are for all, see Art. 3. It lasts.\nA second line here without an end\nThe third one is of 自由。"
    )
    whole = text.encode()
    starts = [0, *sentence_ends(text)]
    parts = [whole[one:other].decode() for one, other in pairwise(starts)]
    assert parts == [
        "Human rights are for all, see Art.", " 3. It lasts.\nA second line here without an end\n",
        "The third one is of 自由。",
    ]  # fmt: skip
    chinese = "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。"
    assert len(sentence_ends(chinese)) == 2
    assert sentence_ends("") == [0]


def test_every_predicted_token_belongs_to_the_sentence_that_it_ends_in() -> None:
    tokenizer = AutoTokenizer.from_pretrained(Checkpoint.open("builtin:tiny30").folder)
    corpus, spec = builtin_corpus("udhr30"), VerifySpec(tokens=300)
    for code, found in evaluation_texts(tokenizer, corpus, ["en", "zh", "ar"], spec).items():
        text = corpus.text(code).evaluate
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [len(text[:end].encode()) for _, end in encoded["offset_mapping"]]
        count = sum(len(window.labels) for window in found.windows)
        first = len(ends[: count + 1]) - count  # 1 where there is nothing to begin with
        plain = [sum(end < ends[at] for end in sentence_ends(text)) for at in range(first, first + count)]
        order = list(dict.fromkeys(plain))
        assert list(found.numbers) == [order.index(number) for number in plain]
        assert len(order) > 2
