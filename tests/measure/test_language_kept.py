"""What a model goes on in: beside transformers' own generation of the written variant, and the identifier alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import surgeon
from surgeon.measure.language_kept import beginnings, distinct
from surgeon.text.corpora import builtin_corpus

py3langid = pytest.importorskip("py3langid")


def test_the_identifier_is_right_about_the_shipped_texts() -> None:
    from surgeon.measure.language_kept import identify, is_language

    corpus = builtin_corpus("udhr30")
    for language in corpus.languages:
        lines = corpus.text(language).evaluate.splitlines()
        right = sum(is_language(identify(line), language) for line in lines)
        assert right >= 0.95 * len(lines), (language, Counter(identify(line) for line in lines))
    assert identify("12 -- 34 ...") is None


def test_beginnings_are_beginnings_of_their_paragraphs() -> None:
    corpus = builtin_corpus("udhr30")
    for language in corpus.languages:
        lines = corpus.text(language).evaluate.splitlines()
        found = beginnings(corpus.text(language).evaluate, 4)
        assert len(set(found)) == 4
        for start in found:
            whole = next(line for line in lines if line.startswith(start))
            assert 12 <= len(start) <= 48
            if language not in ("ja", "zh"):
                assert whole[len(start)] == " "


def test_loops_have_few_different_n_grams() -> None:
    assert distinct("abcdefgh") == 1
    assert distinct("ab" * 50) == pytest.approx(2 / 97)
    assert distinct("abc") == 0


def test_continuations_are_those_of_the_whole_model(tmp_path: Path) -> None:
    import torch
    import transformers

    recipe = {
        "version": 1,
        "name": "kept",
        "model": "builtin:tiny30",
        "regions": {"some": {"select": {"random": 0.03, "seed": 0}}},
        "variants": {"cut": {"operations": [{"zero": "some"}]}},
        "verify": {
            "tokens": 8, "window": 8, "languages": ["en", "ru"], "divergence": False,
            "language_kept": {"prompts": 2, "new_tokens": 12},
        },
        "output": str(tmp_path / "out"),
    }  # fmt: skip
    (tmp_path / "kept.json").write_text(json.dumps(recipe), encoding="utf-8")
    report = surgeon.apply(tmp_path / "kept.json").measurements["language_kept"]
    folder = tmp_path / "out/variants/cut"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    samples = [
        json.loads(line) for line in (tmp_path / "out/samples/language_kept/cut.jsonl").read_text("utf-8").splitlines()
    ]
    kept: dict[str, list[bool]] = {}
    for sample in samples:
        ids = tokenizer(sample["prompt"], return_tensors="pt")
        whole = model.generate(**ids, do_sample=False, max_new_tokens=12)[0]
        said = tokenizer.decode(whole)[len(tokenizer.decode(ids["input_ids"][0])) :]
        assert sample["continuation"] == said
        kept.setdefault(sample["language"], []).append(py3langid.classify(said)[0] == sample["language"])
    assert {language: sum(hits) / 2 for language, hits in kept.items()} == {
        language: by_name["kept"].value for language, by_name in report.found["cut"].items()
    }
