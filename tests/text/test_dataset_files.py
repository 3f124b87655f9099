"""A dataset's card chooses among the dataset's own files: nothing outside is opened, nor any address asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import LoopbackHub

from surgeon.errors import InputError
from surgeon.text.corpora import DatasetLocation


class Listener(BaseHTTPRequestHandler):
    """Answers everything with a row of text, and remembers that it was asked."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        body = b'{"text": "from elsewhere"}\n' * 3
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def rows(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def drawn(folder: Path, config: str | None = None, split: str = "train") -> tuple[str, ...]:
    return DatasetLocation(str(folder), config, split, "text", None, 100).read().texts


@pytest.mark.parametrize(
    "path",
    ["http://{address}/x.jsonl", "{secret}", "../secret.jsonl", "sub/../../secret.jsonl", "~/secret.jsonl",
     "file://{secret}", "zip://a.jsonl::http://{address}/x.zip", "simplecache::http://{address}/x.jsonl",
     "../*.jsonl", "{secret_folder}/*"],
)  # fmt: skip
def test_a_card_leads_nowhere_else(
    path: str, tmp_path: Path, elsewhere: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HOME", str(tmp_path))
    secret = rows(tmp_path / "secret.jsonl", "private", "more of it")
    folder = tmp_path / "data"
    rows(folder / "train.jsonl", "own", "text")
    (folder / "sub").mkdir()
    address = f"127.0.0.1:{elsewhere.server_port}"
    named = path.format(address=address, secret=secret, secret_folder=tmp_path)
    for card in (f"data_files: {json.dumps(named)}", f"data_dir: {json.dumps(named)}",
                 f"data_files: [{{split: train, path: [train.jsonl, {json.dumps(named)}]}}]"):  # fmt: skip
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {card}\n---\n")
        with pytest.raises(InputError, match=r"README\.md names files outside the dataset, which are not read"):
            drawn(folder)
    assert elsewhere.asked == []  # type: ignore[attr-defined]


def test_links_are_no_files_of_a_dataset(tmp_path: Path) -> None:
    secret = rows(tmp_path / "secret" / "more.jsonl", "private", "more of it")
    rows(tmp_path / "data" / "train.jsonl", "own", "text")
    (tmp_path / "data" / "train-2.jsonl").symlink_to(secret)
    (tmp_path / "data" / "train").symlink_to(secret.parent)
    assert drawn(tmp_path / "data") == ("own", "text")


def test_pictures_of_a_file_stay_where_they_are(
    tmp_path: Path, elsewhere: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Parquet file may say that a column holds pictures that lie at an address; to look at it would ask there."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    address = f"http://127.0.0.1:{elsewhere.server_port}/x.png"
    picture = pyarrow.array(
        [{"bytes": None, "path": address}] * 2, pyarrow.struct({"bytes": "binary", "path": "string"})
    )
    table = pyarrow.table({"text": ["own", "text"], "image": picture})
    said = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "image": {"_type": "Image"}}}}
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train.parquet"
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(said)}), file)
    assert drawn(tmp_path / "data") == ("own", "text")
    assert elsewhere.asked == []  # type: ignore[attr-defined]


def test_the_same_files_are_read_as_the_library_reads(tmp_path: Path) -> None:
    import datasets

    folders = {name: tmp_path / name for name in ("plain", "splits", "sharded", "card", "folders", "csv")}
    rows(folders["plain"] / "a.jsonl", "1", "2")
    rows(folders["plain"] / "b" / "c[1].jsonl", "3")
    rows(folders["plain"] / ".hidden" / "c.jsonl", "hidden")
    rows(folders["plain"] / "__own" / "c.jsonl", "special")
    for split in ("train", "test", "dev"):
        rows(folders["splits"] / f"my_{split}.jsonl", split)
        rows(folders["folders"] / split / "x.jsonl", split, "x")
        for part in range(2):
            rows(folders["sharded"] / "data" / f"{split}-{part:05}-of-00002.jsonl", f"{split} {part}")
    rows(folders["card"] / "de" / "x1.jsonl", "ein")
    rows(folders["card"] / "de" / "x2.jsonl", "zwei")
    rows(folders["card"] / "fr.jsonl", "un")
    (folders["card"] / "README.md").write_text(
        "---\nconfigs:\n- {config_name: de, data_files: [{split: train, path: 'de/*.jsonl'}], default: true}\n"
        "- {config_name: fr, data_files: fr.jsonl}\n- {config_name: all, data_files: '**/x[12].jsonl'}\n"
        "- {config_name: dir, data_dir: de}\n---\n# Text\n"
    )
    (folders["csv"]).mkdir()
    (folders["csv"] / "a.csv").write_text("text;n\nein;1\nzwei;2\n")
    (folders["csv"] / "README.md").write_text(
        "---\nconfigs:\n- {config_name: default, data_files: a.csv, sep: ';'}\n---\n"
    )
    for name, config, split in [
        ("plain", None, "train"), ("splits", None, "train"), ("splits", None, "validation"), ("splits", None, "test"),
        ("sharded", None, "train"), ("sharded", None, "dev"), ("folders", None, "test"), ("card", None, "train"),
        ("card", "de", "train"), ("card", "fr", "train"), ("card", "all", "train"), ("card", "dir", "train"),
        ("csv", None, "train"),
    ]:  # fmt: skip
        stream = datasets.load_dataset(str(folders[name]), config, split=split, streaming=True)
        assert drawn(folders[name], config, split) == tuple(row["text"] for row in stream), (name, config, split)


@pytest.mark.parametrize(
    "card",
    [b"---\nconfigs: 3\n---\n", b"---\nconfigs: [[]]\n---\n", b"---\nconfigs: {a: b}\n---\n", b"\xff\xfe---\n",
     b"---\nconfigs:\n- config_name: default\n  data_files: 3\n---\n", b"---\n" + b"[" * 100_000 + b"\n---\n",
     b"---\nconfigs:\n- config_name: default\n  data_files: {train: 3}\n---\n", b"x" * (2 << 20),
     b"---\nconfigs:\n- config_name: default\n  data_files: '[z-a]*'\n---\n",
     b"---\nconfigs:\n- config_name: [1]\n  data_files: a\n---\n", b"---\n- a\n---\n",
     b"---\na: !!python/object:x.y {}\n---\n"],
)  # fmt: skip
def test_a_damaged_card_is_one_message(card: bytes, tmp_path: Path) -> None:
    rows(tmp_path / "train.jsonl", "own", "text")
    (tmp_path / "README.md").write_bytes(card)
    with suppress(InputError):  # or another error of ours; a card without sense may also be passed over
        assert drawn(tmp_path) == ("own", "text")


def test_a_card_on_the_hub_leads_nowhere_else(hub_here: LoopbackHub, tmp_path: Path) -> None:
    secret = rows(tmp_path / "secret.jsonl", "private")
    for name, path in (("a", str(secret)), ("b", "hf://datasets/org/own/train.jsonl"), ("c", "../own/train.jsonl")):
        card = f"---\nconfigs:\n- config_name: default\n  data_files: {path}\n---\n"
        hub_here.add(f"org/{name}", {"README.md": card.encode(), "train.jsonl": b'{"text": "own"}\n'}, kind="datasets")
        where = DatasetLocation(f"org/{name}", None, "train", "text", None, 100)
        with pytest.raises(InputError, match=r"README\.md names files outside the dataset, which are not read"):
            where.read()


def test_a_folder_that_save_to_disk_made_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    import datasets

    texts = [f"river {i}" for i in range(7)]
    rows = datasets.Dataset.from_dict({"said": [{"en": text} for text in texts], "n": list(range(7))})
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    # What `map` leaves in such a folder: rows that are not the dataset's.
    leftover = tmp_path / "one" / "cache-0123.arrow"
    leftover.write_bytes(next((tmp_path / "one").glob("data-*.arrow")).read_bytes())
    datasets.DatasetDict({"train": rows, "test": rows.select([3, 1])}).save_to_disk(tmp_path / "two")

    def read(folder: str, split: str = "train", config: str | None = None) -> tuple[str, ...]:
        return DatasetLocation(str(tmp_path / folder), config, split, "said.en", None, 100).read().texts

    library = datasets.load_from_disk(tmp_path / "one")
    assert read("one") == tuple(row["en"] for row in library["said"]) == tuple(texts)
    assert read("two") == tuple(texts)
    assert read("two", "test") == (texts[3], texts[1])
    with pytest.raises(InputError, match="no split 'tset'; did you mean 'test'"):
        read("two", "tset")
    with pytest.raises(InputError, match="has no configurations, such as 'de'"):
        read("one", config="de")
    state = tmp_path / "one" / "state.json"
    whole = state.read_text()
    for damaged in (whole.replace("data-00000", "../two/data-00000"), whole[:20], "[]", whole.replace("filename", "x")):
        state.write_text(damaged)
        with pytest.raises(InputError, match=r"state\.json (names|or dataset_dict\.json is damaged)"):
            read("one")
