"""Every door takes any bytes: it opens, or says one clear thing. A sample of what `make fuzz` does for hours.

Text and bytes are generated, raw and as mutations of whole files; what once broke a door stands in `corpus/` and is
tried first.
"""

from __future__ import annotations

import io
import json
import resource
import zipfile
from pathlib import Path
from random import Random

import pyarrow
import pyarrow.parquet
import pytest
from doors import holds
from fuzz import DOORS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated
from workshop import Workshop

CORPUS = sorted(path for path in (Path(__file__).parent / "corpus").iterdir() if path.suffix != ".md")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    found = Workshop(tmp_path_factory.mktemp("doors") / "work")
    found.made = found.doors()  # type: ignore[attr-defined]
    return found


def door(workshop: Workshop, name: str):  # type: ignore[no-untyped-def]
    return workshop.made[name]  # type: ignore[attr-defined]


def test_the_doors_are_these(workshop: Workshop) -> None:
    assert tuple(workshop.made) == DOORS  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", DOORS)
def test_a_whole_file_is_taken(name: str, workshop: Workshop) -> None:
    """Otherwise no mutation of it gets far, and the doors hold for want of anybody who comes in."""
    first = door(workshop, name)
    assert holds(first, first.seeds[0]) == "done"


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_what_once_broke_a_door(path: Path, workshop: Workshop) -> None:
    holds(door(workshop, path.name.partition("-")[0]), path.read_bytes())


@pytest.mark.parametrize("name", DOORS)
def test_no_mutation_of_a_whole_file_breaks_a_door(name: str, workshop: Workshop) -> None:
    entered = door(workshop, name)

    @settings(max_examples=8 if name == "model" else 40, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def check(random: Random) -> None:
        holds(entered, mutated(entered, random))

    check()


@pytest.mark.parametrize("name", DOORS)
def test_no_bytes_whatever_break_a_door(name: str, workshop: Workshop) -> None:
    entered = door(workshop, name)

    @settings(max_examples=5 if name == "model" else 15, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=80) | st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")))
    def check(data: bytes) -> None:
        holds(entered, data)
        if entered.kind == "safetensors":
            holds(entered, len(data).to_bytes(8, "little") + data)

    check()


def of_header(text: bytes, body: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + body


def region_that_says(shape: object, entries: object = 1, encoding: object = "gaps") -> bytes:
    name = "model.layers.0.mlp.up_proj.weight"
    table = json.dumps({name: {"shape": shape, "entries": entries, "encoding": encoding}})
    metadata = {"format": "surgeon-region", "format_version": "1", "tensors": table}
    header = {"__metadata__": metadata, name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    return of_header(json.dumps(header).encode(), b"\x00")


WIDE_LAYERS = {
    f"model.layers.{i}.mlp.up_proj.weight": {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [0, 0]}
    for i in range(1000)
}
# What is said of the sizes of these is far more than they hold, or than any machine has.
GREEDY = {
    "rows": ("region", region_that_says([2**33, 1])),
    "columns": ("region", region_that_says([1, 2**33])),
    "vector": ("region", region_that_says([2**33])),
    "bits": ("region", region_that_says([2**33], 1, "bits")),
    "other": ("overlap", region_that_says([2**33, 1])),
    "layers": ("header", of_header(json.dumps(WIDE_LAYERS).encode())),
    "empty": ("header", of_header(b'{"w":{"dtype":"F32","shape":[0,%d],"data_offsets":[0,0]}}' % 10**30)),
    "digits": ("header", of_header(b'{"w":{"dtype":"F32","shape":[%d],"data_offsets":[0,4]}}' % 10**400)),
    "nested": ("header", of_header(b"[" * 60_000)),
    "objects": ("config", b'{"a":' * 60_000 + b"1" + b"}" * 60_000),
    "lists": ("config", b'{"a":[' + b"[]," * 1_300_000 + b"0]}"),
    "long": ("marker", b'{"a":"' + b"x" * (1 << 26) + b'"}'),
    "rows of text": ("lines", b"[" * 60_000 + b"\n"),
}


@pytest.mark.parametrize("what", GREEDY)
def test_nothing_is_asked_for_that_is_only_declared(what: str, workshop: Workshop) -> None:
    name, data = GREEDY[what]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    holds(door(workshop, name), data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kilobytes


def test_an_archive_that_unpacks_to_more_is_none_of_torch(workshop: Workshop) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as part:
        for _ in range(1 << 7):
            part.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(packed.getvalue()) < 1 << 18
    assert holds(door(workshop, "masks"), packed.getvalue()) == "RegionError"
    assert holds(door(workshop, "saved"), packed.getvalue()) == "FreezeError"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kilobytes


def test_text_that_repeats_itself_beyond_all_measure_is_none(workshop: Workshop, tmp_path: Path) -> None:
    path, line = tmp_path / "x.parquet", "x" * 1000
    for rows, end in ((500, "done"), (40_000, "InputError")):  # the latter is 40 MB out of a few kilobytes
        pyarrow.parquet.write_table(pyarrow.table({"text": [line] * rows}), path)
        assert path.stat().st_size < 10_000
        assert holds(door(workshop, "parquet"), path.read_bytes()) == end


def test_a_tensor_that_repeats_one_byte_is_no_mask(workshop: Workshop) -> None:
    masks = door(workshop, "masks")
    assert holds(masks, masks.seeds[-1]) == "RegionError"  # 8 GB, were it written out
