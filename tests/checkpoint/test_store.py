"""What is kept between runs: damaged values are as good as none, and clearing removes what is ours and nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

import surgeon
from surgeon.checkpoint import store
from surgeon.checkpoint.store import cache_folder
from surgeon.cli import app

KEY = "0123456789abcdef" * 4


def test_a_value_is_found_as_it_was_kept_and_not_when_a_bit_has_changed() -> None:
    path = store.path_of("page", KEY, ".svg")
    assert store.value(path) is None
    store.keep_value(path, b"<svg/>")
    assert store.value(path) == b"<svg/>"
    data = bytearray(path.read_bytes())
    for at in range(len(data)):
        data[at] ^= 1
        path.write_bytes(data)
        assert store.value(path) is None
        data[at] ^= 1
    path.write_bytes(b"")
    assert store.value(path) is None


def test_plain_data_keeps_infinities_and_names_of_any_text() -> None:
    path = store.path_of("measures", KEY, ".json")
    store.remember(path, {"nll": math.inf, "größe": [1.5, "\u202e"]})
    assert store.recall(path) == {"nll": math.inf, "größe": [1.5, "\u202e"]}
    assert store.recall(path, longest=10) is None


def test_what_is_kept_is_listed_shelf_by_shelf_and_cleared(recipe, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    surgeon.apply(recipe(), output=tmp_path / "out")
    foreign = [cache_folder() / "scores" / "notes.txt", cache_folder() / "mine" / f"{KEY}.json"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("not ours")
    target = tmp_path / "elsewhere.json"
    target.write_text("not ours either")
    (cache_folder() / "hashes" / f"{KEY[:32]}.json").symlink_to(target)
    listed = json.loads(CliRunner().invoke(app, ["cache", "--json"]).stdout)
    assert listed["folder"] == str(cache_folder())
    for shelf in ("scores", "regions", "measures", "tokens"):
        files = [path for path in (cache_folder() / shelf).iterdir() if path not in foreign]
        assert listed["kept"][shelf]["files"] == len(files) > 0
        assert listed["kept"][shelf]["bytes"] == sum(path.stat().st_size for path in files)
    shown = CliRunner().invoke(app, ["cache"])
    assert str(cache_folder()) in shown.stdout.replace("\n", "")
    cleared = json.loads(CliRunner().invoke(app, ["cache", "--clear", "--json"]).stdout)
    assert cleared["bytes"] == 0
    assert cleared["freed"] == listed["bytes"]
    assert all(path.read_text() == "not ours" for path in foreign)
    assert target.read_text() == "not ours either"
    again = surgeon.apply(recipe(), output=tmp_path / "again")
    assert again.summary


def test_clearing_leaves_what_a_run_holds(tmp_path: Path) -> None:
    from surgeon.checkpoint.store import named_scratch

    with named_scratch("abc") as held:
        assert held is not None
        (held / "states").write_bytes(b"x" * 10)
        CliRunner().invoke(app, ["cache", "--clear"])
        assert (held / "states").exists()
    left = cache_folder() / "scratch" / "killed"
    left.mkdir()
    (left / "progress.json").write_text("{}")
    CliRunner().invoke(app, ["cache", "--clear"])
    assert not left.exists()


@pytest.mark.parametrize("shelf", store.SHELVES)
def test_every_shelf_says_what_it_holds(shelf: str) -> None:
    assert {found.name: found.holds for found in store.contents()}[shelf] == store.SHELVES[shelf]
