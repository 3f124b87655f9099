"""The marker tells a variant from all others, and whether its files are those that were written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from surgeon.errors import InputError
from surgeon.operations.edits import EditCount
from surgeon.write.marker import MARKER, MarkedModel, Marker

MADE = Marker(
    variant="cut",
    operations=[{"zero": "core"}],
    donors={"other": "1" * 64},
    regions={"core": "2" * 64},
    model=MarkedModel(source="m", revision="r", content_sha256="3" * 64),
    recipe={"name": "x"},
    tensors=2,
    entries=7,
    files={"model.safetensors": "4" * 64},
)


@pytest.mark.parametrize("edits", [None, EditCount(7, 5, 0.25), EditCount(7, 5, math.inf)])
def test_what_is_written_is_what_is_read(edits: EditCount | None, tmp_path: Path) -> None:
    made = MADE.model_copy(update={"edits": edits})
    (tmp_path / MARKER).write_text(made.text(), encoding="utf-8")
    assert Marker.read(tmp_path) == made


def test_a_change_that_is_no_number_stays_none(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text(MADE.model_copy(update={"edits": EditCount(1, 1, math.nan)}).text())
    edits = Marker.read(tmp_path).edits
    assert edits is not None
    assert math.isnan(edits.norm)


def test_files_are_named_with_their_hashes() -> None:
    assert json.loads(MADE.text())["files"] == {"model.safetensors": "4" * 64}


@pytest.mark.parametrize(
    "change",
    [
        {"variant": "other"},
        {"operations": [{"zero": "core"}, {"zero": "core"}]},
        {"donors": {"other": "0" * 64}},
        {"freeze": "core"},
        {"regions": {"core": "0" * 64}},
        {"model": MarkedModel(source="m", revision="r", content_sha256="0" * 64)},
        {"model": MarkedModel(source="m", revision="q", content_sha256="3" * 64)},
    ],
)
def test_another_cause_does_not_match(change: dict[str, Any]) -> None:
    assert not MADE.matches(MADE.model_copy(update=change))


def test_what_else_the_recipe_says_is_not_compared() -> None:
    assert MADE.matches(MADE.model_copy(update={"recipe": {"name": "y"}}))


def test_what_came_out_is_not_compared() -> None:
    assert MADE.matches(MADE.model_copy(update={"tensors": 0, "entries": 0, "edits": EditCount(), "files": {}}))


def test_intact_means_every_file_with_its_hash(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"a")
    made = MADE.model_copy(update={"files": {"sub/a": hashlib.sha256(b"a").hexdigest()}})
    assert made.intact(tmp_path, 1)
    (tmp_path / "extra").write_bytes(b"not ours")
    assert made.intact(tmp_path, 1)
    (tmp_path / "sub" / "a").write_bytes(b"b")
    assert not made.intact(tmp_path, 1)
    (tmp_path / "sub" / "a").unlink()
    assert not made.intact(tmp_path, 1)
    assert not MADE.model_copy(update={"files": {}}).intact(tmp_path, 1)  # nothing is known of it


@pytest.mark.parametrize("outside", ["/etc/passwd", "../a", "sub/../../a"])
def test_a_marker_names_no_file_outside_of_its_variant(outside: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lies outside"):
        MADE.model_copy(update={"files": {outside: "0" * 64}}).intact(tmp_path, 1)


WHOLE = json.loads(MADE.text())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "damaged"),
        ("", "damaged"),
        ("[" * 60_000 + "]" * 60_000, "damaged"),
        ('{"a":' * 60_000 + "1" + "}" * 60_000, "damaged"),
        ("\ud800", "damaged"),
        (json.dumps({**WHOLE, "model": "m"}), "damaged at model"),
        (json.dumps({**WHOLE, "regions": {"core": 7}}), "damaged at regions.core"),
        (json.dumps({**WHOLE, "files": [1]}), "damaged at files"),
        (json.dumps({key: value for key, value in WHOLE.items() if key != "recipe"}), "damaged at recipe"),
    ],
)
def test_damage_is_one_message(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / MARKER).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=message) as caught:
        Marker.read(tmp_path)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_no_marker_is_said_too_and_which_folders_of_a_run_have_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a variant that `surgeon apply` wrote .*out/NAME/variants/VARIANT"):
        Marker.read(tmp_path)
    (tmp_path / "variants/cut").mkdir(parents=True)
    (tmp_path / "variants/cut" / MARKER).write_text("{}")
    with pytest.raises(InputError, match=r"name one of '.*/variants/cut'"):
        Marker.read(tmp_path)


def test_what_a_newer_surgeon_added_is_passed_over(tmp_path: Path) -> None:
    newer = {**WHOLE, "extra": 1, "model": {**WHOLE["model"], "more": 2}}
    (tmp_path / MARKER).write_text(json.dumps(newer))
    assert Marker.read(tmp_path) == MADE
