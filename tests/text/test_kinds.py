"""A file is read as the kind that its suffix says, compressed or not, marked or not, or refused in one true message."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from surgeon.errors import InputError
from surgeon.text.corpora import FileLocation
from surgeon.text.unpacked import ALWAYS

DOCUMENTS = ("Flüsse, Brot und Salz", 'He said "no", and left', "河流\n第二行", "{not: json}", "a\tb")
FLAT = tuple(text.replace("\n", " ").replace("\t", " ") for text in DOCUMENTS)


def table(delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")
    writer.writerows([["id", "text"], *([i, document] for i, document in enumerate(DOCUMENTS))])
    return text.getvalue()


KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    ".txt": ("\r\n".join(FLAT), FLAT),
    ".jsonl": ("\n".join(json.dumps({"id": 0, "text": text}) for text in DOCUMENTS), DOCUMENTS),
    ".ndjson": ("\n\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in DOCUMENTS) + "\n", DOCUMENTS),
    ".json": (json.dumps([{"text": text} for text in DOCUMENTS], indent=2), DOCUMENTS),
    " lines.json": ("\n".join(json.dumps({"text": text}) for text in DOCUMENTS), DOCUMENTS),
    ".csv": (table(","), DOCUMENTS),
    ".tsv": (table("\t"), DOCUMENTS),
}
PACKS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}  # fmt: skip


def texts(path: Path, content: bytes | str, field: str = "text", documents: int | None = None) -> tuple[str, ...]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return FileLocation(path, field, documents).read().texts


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_its_documents_compressed_or_not(kind: str, pack: str, tmp_path: Path) -> None:
    content, expected = KINDS[kind]
    assert texts(tmp_path / f"x{kind}{pack}", PACKS[pack](content.encode())) == expected
    assert (
        texts(tmp_path / f"x{kind.upper()}{pack.upper()}", PACKS[pack](content.encode()), documents=2) == expected[:2]
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mark_at_the_start_says_the_encoding_and_is_no_text(kind: str, encoding: str, tmp_path: Path) -> None:
    content, expected = KINDS[kind]
    assert texts(tmp_path / f"x{kind}", content.encode(encoding)) == expected


def test_compressed_parts_one_after_the_other_are_one_text(tmp_path: Path) -> None:
    for suffix in (".gz", ".bz2", ".xz", ".zst"):
        parts = PACKS[suffix](b"a\nb"), PACKS[suffix](b"c\nd\n")
        assert texts(tmp_path / f"x.txt{suffix}", b"".join(parts)) == ("a", "bc", "d")


MESSAGES = [
    [{"role": "user", "content": f"Where is river {i}?"}, {"role": "assistant", "content": "There."}] for i in range(3)
]
ROWS: list[dict[str, Any]] = [
    {"messages": said, "translation": {"en": f"bread {i}", "de": f"Brot {i}"}, "lines": ["a", None, "b"], "a.b": "flat"}
    for i, said in enumerate(MESSAGES)
]
FIELDS: dict[str, list[str]] = {
    "messages.content": [f"Where is river {i}?\nThere." for i in range(3)],
    "translation.en": [f"bread {i}" for i in range(3)],
    "lines": ["a\nb"] * 3,
    "a.b": ["flat"] * 3,
}
WRONG_FIELDS = {
    "messages": r"1: field 'messages' holds objects and no text; write one of messages.role, messages.content",
    "translation.fr": r"1: no field 'fr' in 'translation'; known: de, en",
    "translation.en.x": r"1: field 'translation.en' holds no field 'x' but str",
    "messages.cont": r"1: no field 'cont' in 'messages'; did you mean 'content'\?",
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_fields_inside_others_and_lists_of_messages(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text(json.dumps(ROWS) if suffix == ".json" else "\n".join(map(json.dumps, ROWS)))
    for field, expected in FIELDS.items():
        assert list(FileLocation(path, field).read().texts) == expected
    for field, message in WRONG_FIELDS.items():
        with pytest.raises(InputError, match=message):
            FileLocation(path, field).read()


def test_of_a_message_the_parts_that_have_the_field_are_taken(tmp_path: Path) -> None:
    parts = [{"type": "image", "url": "x"}, {"type": "text", "text": "What is this?"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "tool", "calls": []}]}
    assert texts(tmp_path / "x.jsonl", json.dumps(row), "messages.content.text") == ("What is this?",)


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "no suffix": ("x", b"a", "the suffix '' says no kind"),
    "unknown": ("x.html", b"<p>a</p>", r"the suffix '\.html' says no kind .* \(\.txt, \.text, \.jsonl"),
    "unknown inside": ("x.tar.gz", gzip.compress(b"a"), r"the suffix '\.tar' says no kind"),
    "only packed": ("x.gz", gzip.compress(b"a"), "the suffix '' says no kind"),
    "packed parquet": ("x.parquet.gz", b"", r"all but \.parquet also compressed"),
    "html": ("x.txt", b"\n <!DOCTYPE html>\n<p>a", "HTML or XML, and no plain text"),
    "xml": ("x.txt", b'<?xml version="1.0"?>', "HTML or XML"),
    "json lines": ("x.txt", b'{"text": "a"}\n{"text": "b"}\n', r"JSON, and no plain text; name it \.json, or \.jsonl"),
    "a list": ("x.txt", b'[\n  {"text": "a"}\n]\n', r"JSON, and no plain text"),
    "gzip": ("x.txt", gzip.compress(b"a"), r"not UTF-8 text but gzip; name it \.gz"),
    "zstd": ("x.jsonl", pa.compress(b"\xff", "zstd", asbytes=True), r"not UTF-8 text but Zstandard"),
    "zip": ("x.txt", b"PK\3\4\xff", "ZIP archive; unpack it first"),
    "pdf": ("x.txt", b"%PDF-1.4\n%\xe2\xe3", "not UTF-8 text but PDF"),
    "latin-1": ("x.txt", "a\nb\nFlüsse".encode("latin1"), r"not UTF-8 text \(line 3, byte 0xfc\); convert it"),
    "latin-1 packed": ("x.txt.xz", lzma.compress(b"a\n\xfc"), r"not UTF-8 text \(line 2, byte 0xfc\)"),
    "half utf-16": ("x.txt", "ab".encode("utf-16") + b"a", "begins with the mark of utf-16-le, and is damaged"),
    "utf-16 unmarked": ("x.txt", "ab\n".encode("utf-16-le"), r"x\.txt:1: holds a NUL byte"),
    "nul": ("x.txt", b"a\nb\0c", r"x\.txt:2: holds a NUL byte"),
    "nul in a table": ("x.csv", b"text\na\nb\0\n", r"x\.csv:3: holds a NUL byte"),
    "truncated": ("x.txt.gz", gzip.compress(b"a" * 99)[:-4], r"not a \.gz file that can be unpacked"),
    "truncated zst": ("x.txt.zst", pa.compress(b"abc" * 99, "zstd", asbytes=True)[:-4], r"not a \.zst file"),
    "no gzip": ("x.txt.gz", b"plain text", r"not a \.gz file that can be unpacked"),
    "no bzip2": ("x.txt.bz2", b"plain text", r"not a \.bz2 file that can be unpacked"),
    "no xz": ("x.txt.xz", b"plain text", r"not a \.xz file that can be unpacked"),
    "one object": ("x.json", b'{\n "text": "a"\n}', r"x\.json:1: not JSON .*; a \.json file holds one list of"),
    "half a list": ("x.json", b'[{"text": "a"}, ', r"x\.json: not JSON .*; a \.json file holds one list"),
    "texts": ("x.json", b'["a"]', "item 1: not a JSON object but str"),
    "field of a list": ("x.json", b'[{"text": "a"}, {"txt": "b"}]', "item 2: no field 'text'; did you mean 'txt'"),
    "no column": ("x.csv", b"id;text\n1;a\n", r"x\.csv: no column 'text'; did you mean 'id;text'"),
    "twice": ("x.tsv", b"text\ttext\na\tb\n", "several columns 'text'"),
    "ragged": ("x.csv", b'id,text\n1,"a\nb"\n2,c,d\n', r"x\.csv:4: 3 cells, where the first row has 2"),
    "open quote": ("x.csv", b'id,text\n1,"a\n', r"x\.csv:2: unexpected end of data"),
    "stray quote": ("x.csv", b'id,text\n1,"a"b\n', r"x\.csv:2: .*expected after"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_whatever_is_no_text_is_refused_in_one_message(what: str, tmp_path: Path) -> None:
    name, content, message = REFUSED[what]
    with pytest.raises(InputError, match=message) as caught:
        texts(tmp_path / name, content)
    assert len(caught.value.said) == 1
    assert str(tmp_path / name) in str(caught.value)


def test_empty_files_have_no_document(tmp_path: Path) -> None:
    for name in ("x.txt", "x.json", "x.jsonl"):
        assert texts(tmp_path / name, b"") == ()
    with pytest.raises(InputError, match="no column 'text'"):
        texts(tmp_path / "x.csv", b"")
    assert texts(tmp_path / "x.csv", b"text\n") == ()


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_small_file_cannot_unpack_to_any_size(suffix: str, tmp_path: Path) -> None:
    size = ALWAYS + 1_000_000
    packed = PACKS[suffix](b"x" * size)
    assert 100 * len(packed) < size
    with pytest.raises(InputError, match="unpacks to more than 100 times its size"):
        texts(tmp_path / f"x.txt{suffix}", packed)
    assert len(texts(tmp_path / f"y.txt{suffix}", PACKS[suffix](b"x" * (ALWAYS - 1)))[0]) == ALWAYS - 1


def test_text_in_a_nested_column_that_all_rows_share_takes_no_memory(tmp_path: Path) -> None:
    rows = [{"said": [{"content": "x" * 2_000_000}]}] * 200  # 400 MB written out
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    code = """
import resource, sys
from pathlib import Path
import pyarrow.parquet
from surgeon.text.corpora import FileLocation
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    FileLocation(Path(sys.argv[1]), "said.content").read()
except Exception as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said, grown = done.stdout.splitlines()
    assert said == f"{tmp_path / 'x.parquet'}: unpacks to more than 100 times its size"
    assert int(grown) < 150
