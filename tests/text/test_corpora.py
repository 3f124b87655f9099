"""Texts from files and datasets: every format gives the same text, damage is named by line, shortage is said first."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub_server import LoopbackHub
from huggingface_hub import parse_eval_result_entries
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import surgeon
import surgeon.scoring
from surgeon.errors import InputError, RecipeError
from surgeon.progress import Progress
from surgeon.text.corpora import Corpus, DatasetLocation, FileLocation

DOCUMENTS = [f"{i}. Alle Menschen sind frei und gleich an Würde geboren. " for i in range(40)]


def write(path: Path, documents: list[Any], field: str = "text") -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": list(range(len(documents))), field: documents}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": 0, field: text}) + "\n" for text in documents), encoding="utf-8")
    else:
        path.write_text("\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_every_format_gives_alternating_documents(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"de{suffix}", DOCUMENTS)
    text = Corpus("c", {"de": FileLocation(path)}).text("de")
    assert text.score == "\n".join(DOCUMENTS[::2]) + "\n"
    assert text.evaluate == "\n".join(DOCUMENTS[1::2]) + "\n"
    few = Corpus("c", {"de": FileLocation(path, "text", 7)}).text("de")
    assert few.evaluate == "\n".join(DOCUMENTS[1:7:2]) + "\n"


@given(st.lists(st.text(), max_size=12))
def test_any_text_survives_json_lines_and_parquet(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str]
) -> None:
    kept = tuple(text for text in documents if text.strip())
    folder = tmp_path_factory.mktemp("d")
    try:
        for suffix in (".jsonl", ".parquet"):
            path = write(folder / f"x{suffix}", documents, "content")
            assert FileLocation(path, "content").read().texts == kept
    except UnicodeEncodeError:
        pass  # lone surrogates are no text to Parquet


def test_empty_documents_are_left_out_and_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ["a", "", "  \n", None, "b", "c"])
    assert FileLocation(path, "text", 2).read().texts == ("a", "b")
    path = write(tmp_path / "x.parquet", ["a", "", "  \n", None, "b", "c"])
    assert FileLocation(path, "text", 2).read().texts == ("a", "b")


def test_one_long_document_is_split_by_its_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ["a\nb\n\nc\n"])
    text = Corpus("c", {"x": FileLocation(path)}).text("x")
    assert (text.score, text.evaluate) == ("a\nc\n", "b\n")


DAMAGES = {
    "not json": ("x.jsonl", '{"text": "a"}\n\nhello\n', r"x\.jsonl:3: not JSON"),
    "no object": ("x.jsonl", '{"text": "a"}\n["b"]\n', r"x\.jsonl:2: not a JSON object but list"),
    "no field": ("x.jsonl", '{"text": "a"}\n{"txt": "b"}\n', r"x\.jsonl:2: no field 'text'; did you mean 'txt'\?"),
    "no text": ("x.jsonl", '{"text": 7}\n', r"x\.jsonl:1: field 'text' holds no text but int"),
    "not utf-8": ("x.txt", b"a\nb\xff\xfe", r"x\.txt: not UTF-8 text \(line 2, byte 0xff\)"),
    "not utf-8 json": ("x.jsonl", b'{"text": "a"}\n"\xfe"', r"x\.jsonl: not UTF-8 text \(line 2, byte 0xfe\)"),
    "no parquet": ("x.parquet", b"PAR1", r"x\.parquet: not a Parquet file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_its_line(damage: str, tmp_path: Path) -> None:
    name, content, message = DAMAGES[damage]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        FileLocation(path).read()
    with pytest.raises(InputError, match="no such text file"):
        FileLocation(tmp_path / f"nothing{path.suffix}").read()


def test_damaged_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'txt'; did you mean 'text'\?"):
        FileLocation(write(tmp_path / "x.parquet", DOCUMENTS), "txt").read()
    with pytest.raises(InputError, match=r"x.parquet: row 1: field 'id' holds no text but int"):
        FileLocation(tmp_path / "x.parquet", "id").read()
    data = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"x\.parquet: not a Parquet file that can be read"):
        FileLocation(tmp_path / "x.parquet").read()


def with_corpus(recipe: Callable[..., Path], corpus: dict[str, Any], **changes: str) -> Path:
    path = recipe(**changes)
    data = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**data, "corpus": corpus}))
    return path


def test_a_recipe_names_files_of_every_kind(recipe: Callable[..., Path], tmp_path: Path) -> None:
    lines, table = write(tmp_path / "de.jsonl", DOCUMENTS, "content"), write(tmp_path / "fr.parquet", DOCUMENTS)
    corpus = {"de": {"file": str(lines), "field": "content"}, "fr": {"file": str(table), "documents": 20}}
    surgeon.score(with_corpus(recipe, corpus))
    report = surgeon.apply(with_corpus(recipe, corpus))
    assert set(report.perplexity["base"]) == {"de", "fr"}
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())["corpus"]
    halves = {"score": DOCUMENTS[:20:2], "evaluate": DOCUMENTS[1:20:2]}
    assert found["text_sha256"]["fr"] == {
        name: hashlib.sha256(("\n".join(half) + "\n").encode()).hexdigest() for name, half in halves.items()
    }
    assert found["drawn_from"] == {
        "de": {"source": "de.jsonl", "revision": None}, "fr": {"source": "fr.parquet", "revision": None},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"field": "x"}, "give either file or dataset"),
        ({"file": "a", "dataset": "b"}, "give either file or dataset"),
        ({"file": "a", "split": "test"}, "go with dataset, not with file"),
        ({"file": "/no/such.jsonl"}, "no such text file: /no/such.jsonl"),
        ({"fiel": "a"}, "unknown key 'fiel'; did you mean 'field'"),
    ],
)
def test_mistakes_in_a_recipe_are_named(spec: dict[str, str], message: str, recipe: Callable[..., Path]) -> None:
    path = with_corpus(recipe, {"de": spec, "fr": spec})
    with pytest.raises(RecipeError, match=message) as caught:
        surgeon.plan_recipe(path)
    assert all(f"{path}:" in str(problem) for problem in caught.value.problems)


def test_all_languages_that_have_too_little_text_are_said_before_scoring(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgeon.scores.score_pass.ScorePass.run", lambda *args: pytest.fail("scored"))
    corpus = {
        "de": str(write(tmp_path / "de.txt", ["a", "b"])),
        "fr": str(write(tmp_path / "fr.txt", ["only one"])),
        "en": str(write(tmp_path / "en.txt", DOCUMENTS)),
        "nl": {"file": str(write(tmp_path / "nl.jsonl", DOCUMENTS)), "field": "txt"},
    }
    with pytest.raises(InputError) as caught:
        surgeon.apply(with_corpus(recipe, corpus))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "the text for 'fr'" in lines[0]
    assert "1 paragraph; at least two are needed" in lines[0]
    assert "nl.jsonl:1: no field 'txt'" in lines[1]
    assert not (tmp_path / "out").exists()


def test_a_text_without_a_token_to_predict_is_refused(recipe: Callable[..., Path], tmp_path: Path) -> None:
    from surgeon.model.tokenizer import TokenCounts, load_tokenizer
    from surgeon.plan.texts import check_supply

    class Barren:
        """A tokenizer that knows one token a text."""

        is_fast, bos_token_id = True, None

        def __call__(self, text: str, **_: object) -> dict[str, Any]:
            return {"input_ids": [5], "offset_mapping": [(0, len(text))]}

    made = surgeon.plan_recipe(recipe())
    assert check_supply(made, TokenCounts(made.checkpoint, lambda: load_tokenizer(made.checkpoint))) == []
    with pytest.raises(InputError) as caught:
        check_supply(made, TokenCounts(made.checkpoint, Barren))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"the text for '{language}' is too short to {what}"
        for what in ("score on", "evaluate on")
        for language in ("de", "fr")
    ]


def test_a_short_text_is_said_and_used(recipe: Callable[..., Path], tmp_path: Path) -> None:
    corpus = {
        "de": str(write(tmp_path / "de.txt", ["x" * 50, "y" * 40])),
        "fr": str(write(tmp_path / "fr.txt", DOCUMENTS)),
    }
    with (tmp_path / "log").open("w") as log:
        report = surgeon.apply(with_corpus(recipe, corpus), progress=Progress(Console(file=log, width=200)))
    said = (tmp_path / "log").read_text().splitlines()
    # One byte is one token here; a sequence takes 32, and each text ends with a line break.
    scoring = (
        "note: scored on fewer than 4 sequences of 32 tokens, since the text is short: de 1 (51 tokens; 128 needed)"
    )
    assert said[0] == scoring
    assert said[1] == "note: measured on fewer than 64 tokens, since the text is short: de 40"
    assert said.index(scoring) < next(i for i, line in enumerate(said) if line.startswith("score de"))
    assert {item.language: item.sequences for item in report.scores}["de"] == 1
    assert report.perplexity["base"]["de"].tokens == 40


def test_a_local_dataset_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", DOCUMENTS)
    where = DatasetLocation(str(tmp_path / "data"), None, "train", "text", None, 5)
    assert where.read().texts == tuple(DOCUMENTS[:5])
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"field": "txt"}, r"row 1: no field 'txt'; did you mean 'text'\?"),
        ({"split": "tset"}, "tset"),
        ({"config": "nothing"}, "nothing"),
    )
    for change, message in changes:
        with pytest.raises(InputError, match=message):
            DatasetLocation(**{**where.__dict__, **change}).read()


@pytest.fixture
def dataset(hub: LoopbackHub, tmp_path: Path) -> str:
    """A dataset on the Hub with two configurations; returns its first commit, after which it has changed."""
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {c}\n  data_files:\n  - split: test\n    path: {c}/*.parquet\n" for c in ("de", "fr")
    )
    files = {"README.md": (card + "---\n").encode()}
    for language in ("de", "fr"):
        path = write(tmp_path / f"{language}.parquet", [f"{language} {text}" for text in DOCUMENTS], "content")
        files[f"{language}/part.parquet"] = path.read_bytes()
    commit = hub.add("org/texts", files, kind="datasets")
    newer = write(tmp_path / "newer.parquet", ["something else", "altogether"], "content").read_bytes()
    hub.add("org/texts", {"de/part.parquet": newer}, kind="datasets")
    return commit


def test_a_dataset_on_the_hub_is_pinned(
    hub: LoopbackHub,
    dataset: str,
    recipe: Callable[..., Path],
    surgeon_on_hub: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    spec = {"dataset": "org/texts", "split": "test", "field": "content", "documents": 20}
    newest = hub.repos["datasets/org/texts"].refs["main"]
    corpus = {
        "de": {**spec, "config": "de", "revision": dataset},
        "fr": {**spec, "config": "fr"},
    }
    cache = {"SURGEON_CACHE": str(tmp_path / "surgeon_cache")}
    done = surgeon_on_hub("apply", with_corpus(recipe, corpus), **cache)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())["corpus"]
    assert found["drawn_from"]["fr"] == {"source": "dataset org/texts, config fr, split test", "revision": newest}
    halves = {"score": DOCUMENTS[:20:2], "evaluate": DOCUMENTS[1:20:2]}
    for language in ("de", "fr"):
        assert found["text_sha256"][language] == {
            name: hashlib.sha256("".join(f"{language} {text}\n" for text in half).encode()).hexdigest()
            for name, half in halves.items()
        }
    written = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["corpus"]
    assert (written["de"]["revision"], written["fr"]["revision"]) == (dataset, newest)
    results = tmp_path / "out" / "variants" / "cut" / ".eval_results" / "surgeon.yaml"
    entries = {item.task_id: item for item in parse_eval_result_entries(yaml.safe_load(results.read_text()))}
    measured = json.loads((tmp_path / "out" / "report.json").read_text())["perplexity"]["cut"]
    for language, revision in (("de", dataset), ("fr", newest)):  # as the Hub's own client reads them
        assert (entries[language].dataset_id, entries[language].dataset_revision) == ("org/texts", revision)
        assert entries[language].value == round(measured[language]["perplexity"], 4)
    corpus = {"de": {**spec, "config": "de", "dataset": "org/nothing"}, "fr": {**spec, "config": "xx"}}
    failed = surgeon_on_hub("apply", with_corpus(recipe, corpus), **cache)
    assert failed.returncode == 2, failed.stderr
    assert re.search(
        r"error: .*recipe\.yaml:\d+: dataset org/nothing, config de, split test: nothing there", failed.stderr
    )
    assert "xx" in failed.stderr
    hub.fail("GET", "^/api/datasets", status=503, times=float("inf"))
    down = surgeon_on_hub("apply", with_corpus(recipe, {"de": {**spec, "config": "de"}, "fr": corpus["fr"]}), **cache)
    assert down.returncode == 3, down.stderr
    assert down.stderr.splitlines()[-1].startswith("error: dataset org/texts, config de, split test: ")
    assert "Traceback" not in down.stderr + failed.stderr
