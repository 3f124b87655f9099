"""`plan` looks at the texts: whatever is wrong with one is told with its line, and too little of it is said."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from forking import surgeon_forked

import surgeon
from surgeon.errors import InputError, RecipeError
from surgeon.plan.planning import plan_recipe
from surgeon.plan.texts import open_datasets, short_texts

LINES = [f"{i}. Alle Menschen sind frei und gleich an Würde geboren." for i in range(40)]


def with_corpus(recipe: Callable[..., Path], corpus: dict[str, Any], **verify: Any) -> Path:
    path = recipe()
    data = yaml.safe_load(path.read_text())
    data |= {"corpus": corpus, "verify": {**data["verify"], **verify}}
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def line_of(path: Path, key: str) -> int:
    return next(i for i, line in enumerate(path.read_text().splitlines(), 1) if line.startswith(f"  {key}:"))


def test_every_mistake_of_a_file_is_told_with_its_line(recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"txt": line}) for line in LINES))
    (tmp_path / "b.html").write_text("<p>a</p>")
    (tmp_path / "c.txt").write_text("only one")
    big = [{"content": line * 3000} for line in LINES]  # more than is read as a whole
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, big)))
    pq.write_table(pa.table({"said": [LINES]}), tmp_path / "e.parquet")
    (tmp_path / "g.docx").write_text("not asked for, and yet no text")
    names = {"aa": "a.jsonl", "bb": "b.html", "cc": "c.txt", "dd": "d.jsonl", "ee": "e.parquet", "ff": "f.txt"}
    corpus = {key: {"file": str(tmp_path / name)} for key, name in names.items()} | {"gg": str(tmp_path / "g.docx")}
    corpus |= {key: str(tmp_path / "ok.txt") for key in ("de", "fr")}
    (tmp_path / "ok.txt").write_text("\n".join(LINES))
    path = with_corpus(recipe, corpus, languages=["de", *names])
    with pytest.raises(RecipeError) as caught:
        plan_recipe(path)
    said = {problem.where: problem.what for problem in caught.value.problems}
    expected = {
        "aa": "a.jsonl:1: no field 'text'; did you mean 'txt'?", "bb": "the suffix '.html' says no kind",
        "cc": "1 paragraph; at least two are needed", "dd": "d.jsonl:1: no field 'text'; known: content",
        "ee": "e.parquet: no column 'text'; known: said", "ff": "no such text file",
        "gg": "the suffix '.docx' says no kind",
    }  # fmt: skip
    assert len(said) == len(expected)
    for key, what in expected.items():
        assert what in said[f"{path}:{line_of(path, key) + (key in names)}"]  # of `file:`, or of the language


def test_of_large_files_only_the_first_documents_are_read(recipe: Callable[..., Path], tmp_path: Path) -> None:
    rows = [json.dumps({"text": line * 1000}) for line in LINES * 2]
    (tmp_path / "x.jsonl").write_text("\n".join([*rows, '{"damaged": 1}']))
    path = with_corpus(recipe, {"de": str(tmp_path / "x.jsonl"), "fr": str(tmp_path / "x.jsonl")})
    assert short_texts(plan_recipe(path)) == []
    with pytest.raises(InputError, match=rf"recipe\.yaml:{line_of(path, 'de')}: .*x\.jsonl:81: no field 'text'"):
        surgeon.apply(path)


def test_datasets_are_opened_and_told_with_their_line(recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in LINES))
    good = {"dataset": str(tmp_path / "data")}
    path = with_corpus(recipe, {"de": {**good, "field": "txt"}, "fr": {**good, "split": "tset"}})
    with pytest.raises(RecipeError) as caught:
        open_datasets(plan_recipe(path))
    told = [str(problem) for problem in caught.value.problems]
    assert told[0].startswith(f"{path}:{line_of(path, 'de')}: ")
    assert "no field 'txt'; did you mean 'text'?" in told[0]
    assert "no split 'tset'" in told[1]
    fine = plan_recipe(with_corpus(recipe, {"de": good, "fr": good}))
    assert open_datasets(fine) == []
    started = time.monotonic()
    assert open_datasets(fine, seconds=-1) == ["not looked at, to save time: the datasets of de, fr"]
    assert time.monotonic() - started < 1


def test_the_command_line_says_what_is_too_short(recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("\n".join(LINES))
    (tmp_path / "short.txt").write_text("\n".join(["x" * 60, "y" * 59]))
    path = with_corpus(recipe, {"de": str(tmp_path / "short.txt"), "fr": str(tmp_path / "long.txt")})
    done = surgeon_forked("plan", path)
    assert done.returncode == 0, done.stderr
    flat = " ".join(done.stdout.split())
    assert "text too short to score on 128 tokens, by a guess from its bytes: de about 20" in flat
    assert "text too short to measure on 64 tokens, by a guess from its bytes: de about 20" in flat
    data = json.loads(surgeon_forked("plan", path, "--json").stdout)
    assert len(data["text_notes"]) == 2
