"""Opening checkpoints: every layout is read, every contradiction is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ModelMaker
from safetensors.torch import load_file, save_file

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.weight_files import INDEX_NAME
from surgeon.errors import CheckpointError


@pytest.fixture
def sharded(make_model: ModelMaker, tmp_path: Path) -> Path:
    """A fresh copy of a Llama in several shards with an index."""
    folder = tmp_path / "sharded"
    shutil.copytree(make_model("llama", shard="20KB", dtype="bfloat16"), folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def reference(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def assert_same_tensors(checkpoint: Checkpoint, folder: Path) -> None:
    expected = reference(folder)
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        found = checkpoint.tensor(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)


def test_a_single_file(llama: Path) -> None:
    assert_same_tensors(Checkpoint.open(llama), llama)
    assert_same_tensors(Checkpoint.open(llama / "model.safetensors"), llama)


def test_an_index_with_shards(sharded: Path) -> None:
    assert_same_tensors(Checkpoint.open(sharded), sharded)


def test_a_shard_set_without_index(sharded: Path) -> None:
    (sharded / INDEX_NAME).unlink()
    assert_same_tensors(Checkpoint.open(sharded), sharded)


def test_a_missing_shard(sharded: Path) -> None:
    second = sorted(sharded.glob("model-*.safetensors"))[1]
    second.unlink()
    with pytest.raises(CheckpointError, match=f"{second.name}, which is missing"):
        Checkpoint.open(sharded)
    (sharded / INDEX_NAME).unlink()
    with pytest.raises(CheckpointError, match="shard 2 of"):
        Checkpoint.open(sharded)


def test_a_truncated_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{shard.name}: truncated"):
        Checkpoint.open(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    tensors = load_file(second)
    name = next(iter(load_file(first)))
    save_file({**tensors, name: load_file(first)[name]}, second)
    with pytest.raises(CheckpointError, match=f"'{name}' is in both"):
        Checkpoint.open(sharded)


def change_index(folder: Path, change: dict[str, str | None]) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    for name, file in change.items():
        if file is None:
            del index["weight_map"][name]
        else:
            index["weight_map"][name] = file
    (folder / INDEX_NAME).write_text(json.dumps(index))


def test_an_index_that_contradicts_the_headers(sharded: Path) -> None:
    weight_map = json.loads((sharded / INDEX_NAME).read_text())["weight_map"]
    file = next(iter(weight_map.values()))
    change_index(sharded, {"nowhere": file})
    with pytest.raises(CheckpointError, match="'nowhere'"):
        Checkpoint.open(sharded)
    change_index(sharded, {"nowhere": "../other.safetensors"})
    with pytest.raises(CheckpointError, match="not a plain file name"):
        Checkpoint.open(sharded)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        Checkpoint.open(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        Checkpoint.open("./nothing")  # which no Hub id can be
    with pytest.raises(CheckpointError, match="no safetensors file"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="save_pretrained"):
        Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match="no builtin model 'tiny3'; did you mean"):
        Checkpoint.open("builtin:tiny3")


def test_an_unknown_tensor_gets_a_suggestion(llama: Path) -> None:
    with pytest.raises(CheckpointError, match=r"did you mean 'model.layers.0.mlp.up_proj.weight'"):
        Checkpoint.open(llama).array("model.layers.0.mlp.up_prj.weight")


def test_ties_come_from_config_and_headers(make_model: ModelMaker, tmp_path: Path) -> None:
    assert Checkpoint.open(make_model("llama")).ties == ()
    tied = make_model("llama", tie_word_embeddings=True)
    assert Checkpoint.open(tied).ties == (("model.embed_tokens.weight",),)
    both = tmp_path / "both"  # a tied model that stores its head all the same
    shutil.copytree(tied, both)
    tensors = load_file(both / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, both / "model.safetensors", {"format": "pt"})
    assert Checkpoint.open(both).ties == (("model.embed_tokens.weight", "lm_head.weight"),)


def test_a_gpt2_without_the_config_key_is_tied_because_no_head_is_stored(
    make_model: ModelMaker, tmp_path: Path
) -> None:
    folder = tmp_path / "gpt2"
    shutil.copytree(make_model("gpt2"), folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    (group,) = Checkpoint.open(folder).ties
    assert group == ("transformer.wte.weight",)
