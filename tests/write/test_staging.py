"""Written variants: exactly the region's non-zero entries differ, and nothing half done bears a final name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import ModelMaker
from safetensors.torch import load_file, save_file

from surgeon.anatomy.scope import scope
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import EnvironmentFailure, InputError, RegionError
from surgeon.operations import OPERATIONS
from surgeon.region.region import Region
from surgeon.region.select import select_random
from surgeon.write.marker import MarkedModel, Marker
from surgeon.write.output import output_lock
from surgeon.write.staging import write_variant

ZERO = [OPERATIONS["zero"](zero="r")]


def random_region(checkpoint: Checkpoint, fraction: float = 0.1) -> Region:
    tensors = scope(checkpoint).tensors
    chosen = {info.name: select_random([(info.name, info.numel)], fraction, 3)[info.name] for info in tensors}
    return Region.from_indices(chosen, {info.name: info.shape for info in tensors})


def marker_of(variant: str) -> Marker:
    model = MarkedModel(source="m", revision=None, content_sha256="")
    return Marker(variant=variant, operations=[{"zero": "r"}], regions={}, model=model, recipe={})


def changed_bytes(before: Path, after: Path) -> set[int]:
    left, right = (np.frombuffer(path.read_bytes(), np.uint8) for path in (before, after))
    assert left.size == right.size
    return set(np.flatnonzero(left != right).tolist())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_the_variant_differs_exactly_at_the_regions_nonzero_entries(
    dtype: str, shard: str, make_model: ModelMaker, tmp_path: Path
) -> None:
    folder = make_model("llama", dtype=dtype, shard=shard)
    source = Checkpoint.open(folder)
    region = random_region(source)
    written = write_variant(source, ZERO, {"r": region}, tmp_path / "v")
    assert written.entries == region.entries
    for header in source.headers:
        copy = tmp_path / "v" / header.path.name
        expected: set[int] = set()
        for name, info in header.tensors.items():
            if name in region:
                width = info.nbytes // info.numel
                raw = header.path.read_bytes()[info.offset : info.offset + info.nbytes]
                for index in region.indices(name).tolist():
                    cell = raw[index * width : (index + 1) * width]
                    if torch.frombuffer(bytearray(cell), dtype=getattr(torch, dtype)).item() != 0:
                        expected |= {info.offset + index * width + i for i, byte in enumerate(cell) if byte}
        assert changed_bytes(header.path, copy) == expected
        assert copy.read_bytes()[: header.data_start] == header.path.read_bytes()[: header.data_start]


def test_a_negative_zero_stays_as_it_is(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_file({"w": torch.tensor([-0.0, 0.0, 1.0, -2.0])}, source / "model.safetensors")
    region = Region.from_indices({"w": np.arange(4)}, {"w": (4,)})
    write_variant(Checkpoint.open(source), ZERO, {"r": region}, tmp_path / "v")
    found = load_file(tmp_path / "v" / "model.safetensors")["w"]
    assert found.view(torch.int32).tolist() == torch.tensor([-0.0, 0.0, 0.0, 0.0]).view(torch.int32).tolist()


def test_the_variant_loads_in_plain_transformers(make_model: ModelMaker, tmp_path: Path) -> None:
    folder = make_model("llama", shard="20KB", dtype="bfloat16")
    source = Checkpoint.open(folder)
    region = random_region(source)
    write_variant(source, ZERO, {"r": region}, tmp_path / "v")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "v", dtype="auto")
    original = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    for name, tensor in model.state_dict().items():
        expected = original[name].clone()
        if name in region:
            expected.view(-1)[torch.from_numpy(region.indices(name))] = 0
        assert torch.equal(tensor, expected)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "v")("abc")["input_ids"]


def test_both_stored_copies_of_a_tied_weight_are_cut(make_model: ModelMaker, tmp_path: Path) -> None:
    folder = tmp_path / "tied"
    shutil.copytree(make_model("llama", tie_word_embeddings=True), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    name = "model.embed_tokens.weight"
    region = Region.from_indices({name: np.array([3, 70])}, {name: tuple(tensors[name].shape)})
    write_variant(Checkpoint.open(folder), ZERO, {"r": region}, tmp_path / "v")
    found = load_file(tmp_path / "v" / "model.safetensors")
    assert torch.equal(found[name], found["lm_head.weight"])
    assert found[name].view(-1)[[3, 70]].tolist() == [0, 0]


def test_companions_come_along_and_other_weights_do_not(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    shutil.copytree(llama, folder)
    wanted = ["LICENSE", "chat_template.jinja", "vocab.txt"]
    unwanted = [
        "modeling_own.py",
        "sub/vocab.txt",
        "pytorch_model.bin",
        "model.gguf",
        "pytorch_model.bin.index.json",
        ".git/config",
        "README.md",
        "old.pt",
    ]
    for name in wanted + unwanted:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / "linked.json").symlink_to(folder / "config.json")
    source = Checkpoint.open(folder)
    write_variant(source, ZERO, {"r": random_region(source)}, tmp_path / "v", card="# card\n")
    for name in [*wanted, "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]:
        assert (tmp_path / "v" / name).read_bytes() == (folder / name).read_bytes()
    assert not (tmp_path / "v" / "linked.json").is_symlink()
    assert (tmp_path / "v" / "README.md").read_text() == "# card\n"
    assert not any((tmp_path / "v" / name).exists() for name in unwanted if name != "README.md")


def test_the_source_keeps_every_byte_and_time(llama: Path, tmp_path: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in llama.iterdir()}
    source = Checkpoint.open(llama)
    write_variant(source, ZERO, {"r": random_region(source)}, tmp_path / "v")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in llama.iterdir()} == before


def test_outputs_inside_source_or_hub_cache_are_refused(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    source = Checkpoint.open(llama)
    regions = {"r": random_region(source)}
    (tmp_path / "link").symlink_to(llama)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for inside in (llama, llama / "deep" / "v", tmp_path / "link" / "v", tmp_path / "hub" / "models--a--b" / "v"):
        with pytest.raises(InputError, match="lies inside"):
            write_variant(source, ZERO, regions, inside)
    assert not (tmp_path / "hub").exists()


def test_a_folder_of_the_users_is_never_replaced(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "thesis.txt").write_text("precious")
    source = Checkpoint.open(llama)
    with pytest.raises(InputError, match="was not written by surgeon"):
        write_variant(source, ZERO, {"r": random_region(source)}, tmp_path / "v")
    assert [path.name for path in (tmp_path / "v").iterdir()] == ["thesis.txt"]


def test_an_equal_variant_is_kept_and_another_replaces_it(llama: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(llama)
    region = random_region(source)
    first = write_variant(source, ZERO, {"r": region}, tmp_path / "v", marker=marker_of("one"))
    stamp = (tmp_path / "v" / "model.safetensors").stat().st_mtime_ns
    again = write_variant(source, ZERO, {"r": region}, tmp_path / "v", marker=marker_of("one"))
    assert (first.reused, again.reused, again.entries) == (False, True, first.entries)
    assert (tmp_path / "v" / "model.safetensors").stat().st_mtime_ns == stamp
    other = write_variant(source, ZERO, {"r": random_region(source, 0.3)}, tmp_path / "v", marker=marker_of("two"))
    assert not other.reused
    assert json.loads((tmp_path / "v" / "surgeon.json").read_text())["variant"] == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v"]


def test_a_region_of_another_model_is_refused(llama: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(llama)
    for region, message in (
        (
            Region.from_masks({"model.layers.9.mlp.up_proj.weight": np.ones((2, 2), bool)}),
            "which .* has not; did you mean",
        ),
        (Region.from_masks({"model.layers.0.mlp.up_proj.weight": np.ones((2, 2), bool)}), "belongs to another model"),
    ):
        with pytest.raises(RegionError, match=message):
            write_variant(source, ZERO, {"r": region}, tmp_path / "v")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_before_anything_is_written(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    source = Checkpoint.open(llama)
    with pytest.raises(EnvironmentFailure, match="free, but the variant needs"):
        write_variant(source, ZERO, {"r": random_region(source)}, tmp_path / "out" / "v")
    assert not list((tmp_path / "out").iterdir())


def test_two_runs_do_not_share_an_output(tmp_path: Path) -> None:
    with (
        output_lock(tmp_path / "out", "one"),
        pytest.raises(EnvironmentFailure, match="another surgeon"),
        output_lock(tmp_path / "out", "one"),
    ):
        pass


KILLED = """
import os, sys, time
from pathlib import Path
import surgeon.write.copying as copying
import surgeon.write.staging as staging
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.operations import OPERATIONS
from surgeon.region.region import Region

real = copying.copy_shard
def slow(*arguments):
    result = real(*arguments)
    print("copied", flush=True)
    time.sleep(60)
    return result
copying.copy_shard = slow
region = Region.load(sys.argv[3])
zero = [OPERATIONS["zero"](zero="r")]
staging.write_variant(Checkpoint.open(sys.argv[1]), zero, {"r": region}, Path(sys.argv[2]), jobs=1)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_writer_leaves_nothing_under_the_final_name(
    how: signal.Signals, make_model: ModelMaker, tmp_path: Path
) -> None:
    folder = make_model("llama", shard="20KB")
    source = Checkpoint.open(folder)
    region = random_region(source)
    region.save(tmp_path / "r.region.safetensors")
    arguments = [str(folder), str(tmp_path / "out" / "v"), str(tmp_path / "r.region.safetensors")]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"copied\n"
    os.kill(process.pid, how)
    if how is signal.SIGINT:
        time.sleep(0.2)
        process.kill()
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "out" / "v").exists()
    write_variant(source, ZERO, {"r": region}, tmp_path / "out" / "v")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["v"]
    assert set(Checkpoint.open(tmp_path / "out" / "v").tensors) == set(source.tensors)
