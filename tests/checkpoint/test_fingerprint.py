"""What is kept is found again only by what made it: every ingredient of a fingerprint changes its key."""

from __future__ import annotations

import hashlib
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ModelMaker
from safetensors.torch import load_file, save_file

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import (
    Fingerprint,
    content_hash,
    damaged,
    hash_tensor,
    identity,
    library_versions,
    refuse_changed,
    source_file_hashes,
    stored_hash,
    tensor_hashes,
    tokenizer_hashes,
)
from surgeon.checkpoint.remote import RemoteFile
from surgeon.errors import CheckpointError, InputError

MADE = Fingerprint(
    version=1,
    model="a" * 64,
    config={"hidden_size": 32, "rope": {"theta": 1e4}},
    tokenizer={"tokenizer.json": "b" * 64},
    text="c" * 64,
    settings={"samples": 4, "precision": "float32"},
    tensors=("w", "v"),
    device="cpu",
    attention="sdpa",
    libraries={"torch": "2.13.0", "transformers": "5.0.0"},
)
CHANGED: dict[str, list[Any]] = {
    "version": [2],
    "model": ["a" * 63 + "b"],
    "config": [{}, {"hidden_size": 32, "rope": {"theta": 2e4}}, {"hidden_size": "32", "rope": {"theta": 1e4}}],
    "tokenizer": [
        {"tokenizer.json": "d" * 64},
        {"tokenizer.json": "b" * 64, "added_tokens.json": "e" * 64},
        {"vocab.json": "b" * 64},
    ],
    "text": ["f" * 64],
    "settings": [{"samples": 5, "precision": "float32"}, {"samples": 4, "precision": "native"}, {"samples": 4}],
    "tensors": [("v", "w"), ("w",), ("w", "v", "u"), ("wv",)],
    "device": ["cuda"],
    "attention": ["eager"],
    "libraries": [{"torch": "2.13.1", "transformers": "5.0.0"}, {"torch": "2.13.0", "transformers": "5.0.1"}],
}


def test_the_table_below_names_every_ingredient() -> None:
    assert set(CHANGED) == {item.name for item in fields(Fingerprint)}


@pytest.mark.parametrize(
    ("ingredient", "value"), [(name, value) for name, values in CHANGED.items() for value in values]
)
def test_every_ingredient_changes_the_key(ingredient: str, value: Any) -> None:
    assert replace(MADE, **{ingredient: value}).key() != MADE.key()


def test_all_changes_have_keys_of_their_own() -> None:
    keys = [replace(MADE, **{name: value}).key() for name, values in CHANGED.items() for value in values]
    assert len({*keys, MADE.key()}) == len(keys) + 1


def test_the_same_ingredients_have_the_same_key_in_whatever_order_mappings_are() -> None:
    turned = replace(MADE, config=dict(reversed(MADE.config.items())), libraries=dict(reversed(MADE.libraries.items())))
    assert turned.key() == MADE.key()
    # A literal, so that no edit makes old keys name new things without raising a version.
    assert Fingerprint(version=1, model="m").key() == (
        "87a9e43db5de7aa733362d1f86c617c925bfb928283304865148ec2e6127fdfb"
    )


def test_every_file_that_makes_tokens_counts_and_a_chat_template_does_not(tmp_path: Path) -> None:
    counted = [
        "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json",
        "added_tokens.json", "spiece.model", "tokenizer.model", "qwen.tiktoken",
    ]  # fmt: skip
    for name in [*counted, "chat_template.jinja", "README.md", "model.safetensors"]:
        (tmp_path / name).write_text(name)
    (tmp_path / "tokenizer").mkdir()
    before = tokenizer_hashes(tmp_path)
    assert sorted(before) == sorted(counted)
    for name in counted:
        (tmp_path / name).write_text("changed")
        assert tokenizer_hashes(tmp_path) != before
        (tmp_path / name).write_text(name)
    assert tokenizer_hashes(tmp_path) == before


def test_versions_are_those_of_the_libraries() -> None:
    import torch
    import transformers

    found = library_versions()
    assert found["transformers"] == transformers.__version__
    assert torch.__version__.startswith(found["torch"].partition("+")[0])
    assert set(found) == {"torch", "transformers", "tokenizers"}


def independent_hashes(folder: Path) -> dict[str, str]:
    """Hash what another library reads out of the files."""
    found = {}
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            found[name] = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    return found


def test_hashes_of_tensors_are_those_of_their_bytes(make_model: ModelMaker) -> None:
    folder = make_model("llama", dtype="bfloat16", shard="20KB")
    checkpoint, expected = Checkpoint.open(folder), independent_hashes(folder)
    assert tensor_hashes(checkpoint, 2) == expected
    some = sorted(expected)[1::3]
    assert tensor_hashes(checkpoint, 1, some) == {name: expected[name] for name in some}
    # As a tensor of a file that is on the Hub alone is hashed: read piece by piece.
    assert {name: hash_tensor(info) for name, info in checkpoint.tensors.items()} == expected


def test_the_hash_of_a_checkpoint_follows_names_and_bytes_and_no_shards(make_model: ModelMaker, tmp_path: Path) -> None:
    sharded = make_model("llama", dtype="bfloat16", shard="20KB")
    tensors = {name: value for path in sharded.glob("*.safetensors") for name, value in load_file(path).items()}
    whole, other = tmp_path / "whole.safetensors", tmp_path / "other.safetensors"
    save_file(tensors, whole)
    content = content_hash(Checkpoint.open(sharded), 2)
    assert content_hash(Checkpoint.open(whole), 1) == content
    name = sorted(tensors)[-1]
    changed = tensors[name].clone()
    changed.view(torch.int16).view(-1)[-1] ^= 1
    for others in ({name: changed}, {name: tensors[name].reshape(1, -1)}, {name: tensors[name].view(torch.float16)}):
        save_file({**tensors, **others}, other)
        assert content_hash(Checkpoint.open(other), 1) != content


def test_hashes_of_files_are_those_of_their_bytes(make_model: ModelMaker, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_model("llama", shard="20KB"))
    shards = sorted(checkpoint.folder.glob("*.safetensors"))
    expected = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards}
    assert len(shards) > 2
    assert source_file_hashes(checkpoint, 2) == source_file_hashes(checkpoint, 1) == expected
    assert {path: stored_hash(path) for path in shards} == expected


def test_of_a_large_file_on_the_hub_the_hub_says_the_hash(make_model: ModelMaker) -> None:
    local = Checkpoint.open(make_model("llama"))
    file = RemoteFile("org/name", "c" * 40, "model.safetensors", 10, "a" * 64)
    checkpoint = replace(local, headers=[replace(header, path=file) for header in local.headers])
    assert source_file_hashes(checkpoint, 1) == {file: "a" * 64}


def test_what_is_missing_or_another_file_is_named_in_order(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b", "below/a", "c", "other"):
        (tmp_path / name).write_text(name)
    said = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("gone", "c", "below/a", "b", "below")}
    assert damaged(tmp_path, {name: said[name] for name in ("c", "below/a")}, 2) == []
    (tmp_path / "c").write_text("C")
    found = damaged(tmp_path, said, 2)
    now = hashlib.sha256(b"C").hexdigest()
    assert found == [
        f"{tmp_path}/gone: missing",
        f"{tmp_path}/c: not the file that was written (its SHA-256 is {now[:12]}..., and was {said['c'][:12]}...)",
        f"{tmp_path}/below: missing",  # a folder is no file
    ]


@pytest.mark.parametrize("name", ["/etc/hostname", "../x", "below/../../x"])
def test_files_outside_of_the_folder_are_not_looked_at(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which lies outside of it"):
        damaged(tmp_path, {"inside": "a" * 64, name: "a" * 64}, 1)


def test_a_source_that_is_no_longer_what_was_opened_is_refused(make_model: ModelMaker) -> None:
    folder = make_model("llama", shard="20KB", seed=8)
    checkpoint, last = Checkpoint.open(folder), sorted(folder.glob("*.safetensors"))[-1]
    refuse_changed(checkpoint)
    whole, times = last.read_bytes(), last.stat()
    last.write_bytes(whole)
    os.utime(last, ns=(times.st_atime_ns, times.st_mtime_ns))  # its old time does not hide that it was written to
    with pytest.raises(CheckpointError, match=f"{last}: was changed while it was read"):
        refuse_changed(checkpoint)
    last.unlink()
    with pytest.raises(CheckpointError, match=f"{last}: was removed while it was read"):
        refuse_changed(checkpoint)
    last.write_bytes(whole)
    refuse_changed(Checkpoint.open(folder))


def test_a_checkpoint_is_told_by_its_commit_or_by_its_content(make_model: ModelMaker) -> None:
    local = Checkpoint.open(make_model("llama"))
    assert identity(local, 1) == content_hash(local, 2)
    pinned = replace(local, source=replace(local.source, name="org/name", revision="c" * 40))
    assert identity(pinned, 1) == f"hf://org/name@{'c' * 40}"
