"""Which files are read is what transformers reads: held against `from_pretrained` itself, and against raw headers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ModelMaker
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.quantized import remarks
from surgeon.checkpoint.weight_files import INDEX_NAME, SINGLE_NAME
from surgeon.errors import CheckpointError
from surgeon.views.inspection import look_at

HEAD = "lm_head.weight"


@pytest.fixture
def sharded(make_model: ModelMaker, tmp_path: Path) -> Path:
    """A fresh copy of a Llama in several shards with an index; its head is alone in the last one."""
    folder = tmp_path / "sharded"
    shutil.copytree(make_model("llama"), folder)
    tensors = load_file(folder / SINGLE_NAME)
    (folder / SINGLE_NAME).unlink()
    names = [name for name in tensors if name != HEAD]
    parts = [names[:9], names[9:], [HEAD]]
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-00003.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def change(folder: Path, edit: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    edit(index["weight_map"])
    (folder / INDEX_NAME).write_text(json.dumps(index))


def as_transformers_loads(folder: Path) -> dict[str, torch.Tensor]:
    """The state of the model that `from_pretrained` makes."""
    import transformers

    return dict(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())


def assert_as_transformers_loads(folder: Path) -> Checkpoint:
    """Hold a Llama, whose names on disk are those of the class, against what transformers makes of it."""
    checkpoint, loaded = Checkpoint.open(folder), as_transformers_loads(folder)
    for name, tensor in loaded.items():
        stored = name if name in checkpoint.tensors else "model.embed_tokens.weight"  # a tied head
        assert torch.equal(checkpoint.tensor(stored).float(), tensor), name
    return checkpoint


def other_values(folder: Path, file: str) -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in load_file(folder / file).items()}


def test_a_single_file_beside_a_stale_index(sharded: Path) -> None:
    tensors = {n: t for f in sorted(sharded.glob("*.safetensors")) for n, t in load_file(f).items()}
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, sharded / SINGLE_NAME, {"format": "pt"})
    checkpoint = assert_as_transformers_loads(sharded)
    assert [header.path.name for header in checkpoint.headers] == [SINGLE_NAME]
    said = "\n".join(remarks(checkpoint))
    for name in (INDEX_NAME, *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))):
        assert name in said


def test_what_a_loaded_shard_holds_is_loaded_named_by_the_index_or_not(sharded: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    change(sharded, lambda names: names.pop(name))
    checkpoint = assert_as_transformers_loads(sharded)
    assert name in checkpoint.tensors
    assert any(name in line for line in remarks(checkpoint))


def test_an_index_that_puts_a_tensor_into_another_shard(sharded: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    change(sharded, lambda names: names.update({name: "model-00001-of-00003.safetensors"}))
    checkpoint = assert_as_transformers_loads(sharded)
    assert any(name in line for line in remarks(checkpoint))


def test_a_shard_that_the_index_forgets(sharded: Path) -> None:
    """The model would be loaded with a head of random values; of what it needs not, it is said that it is left out."""
    change(sharded, lambda names: names.pop(HEAD))
    with pytest.raises(CheckpointError, match=rf"model-00003-of-00003\.safetensors, which holds '{HEAD}'"):
        Checkpoint.open(sharded)
    save_file({"mtp.fc.weight": torch.ones(2, 2)}, sharded / "model-00003-of-00003.safetensors")
    config = json.loads((sharded / "config.json").read_text())
    (sharded / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    checkpoint = assert_as_transformers_loads(sharded)
    assert "mtp.fc.weight" not in checkpoint.tensors
    (line,) = remarks(checkpoint)
    assert "model-00003-of-00003.safetensors" in line
    assert "'mtp.fc.weight'" in line


def test_an_index_that_names_nothing(sharded: Path) -> None:
    change(sharded, lambda names: names.clear())
    with pytest.raises(CheckpointError, match="names no tensor"):
        Checkpoint.open(sharded)


def test_notes_of_macos_are_no_shards(sharded: Path) -> None:
    for path in list(sharded.glob("*.safetensors")):
        (sharded / f"._{path.name}").write_bytes(b"\0\5\26\7")
    assert len(assert_as_transformers_loads(sharded).headers) == 3
    (sharded / INDEX_NAME).unlink()
    assert len(Checkpoint.open(sharded).headers) == 3


def test_the_file_that_the_config_names(sharded: Path) -> None:
    tensors = {n: t for f in sorted(sharded.glob("*.safetensors")) for n, t in load_file(f).items()}
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, sharded / "own.safetensors", {"format": "pt"})
    config = json.loads((sharded / "config.json").read_text())
    (sharded / "config.json").write_text(json.dumps({**config, "transformers_weights": "own.safetensors"}))
    assert [header.path.name for header in assert_as_transformers_loads(sharded).headers] == ["own.safetensors"]
    (sharded / "config.json").write_text(json.dumps({**config, "transformers_weights": "../own.safetensors"}))
    with pytest.raises(CheckpointError, match="transformers_weights"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("beside", [False, True])
def test_an_adapter_is_no_model(sharded: Path, beside: bool) -> None:
    """Beside a model transformers adds it to that, so that what is measured without it would be another model."""
    (sharded / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    if not beside:
        for path in [*sharded.glob("model*"), sharded / "config.json"]:
            path.unlink()
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, sharded / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="merge_and_unload") as caught:
        Checkpoint.open(sharded)
    assert ("org/base" in str(caught.value)) != beside


RECIPE = """\
version: 1
name: r
model: {model}
regions: {{a: {{select: {{random: 0.1}}}}}}
variants: {{cut: {{operations: [{{zero: a}}]}}}}
output: {output}
"""


def test_variants_load_though_the_source_had_no_index(sharded: Path, tmp_path: Path) -> None:
    (sharded / INDEX_NAME).unlink()
    save_file({"mtp.fc.weight": torch.ones(2, 2)}, sharded / "model-mtp-of-00003.safetensors")
    assert "model-mtp-of-00003.safetensors" in look_at(str(sharded))["files_left_out"]
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=sharded, output=tmp_path / "out"))
    report = surgeon.apply(tmp_path / "recipe.yaml")
    assert "model-mtp-of-00003.safetensors" in report.model.files_left_out
    variant = tmp_path / "out/variants/cut"
    assert_as_transformers_loads(variant)
    assert not (variant / "model-mtp-of-00003.safetensors").exists()
    assert surgeon.apply(tmp_path / "recipe.yaml").variants["cut"].reused
    assert as_transformers_loads(variant).keys() == as_transformers_loads(variant).keys()


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (2, 2, 2, 2), (2, 1, 2, 1, 2)])
def test_tensors_of_unusual_shapes(sharded: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    """They are looked at, planned, copied and compared as any other, byte by byte."""
    file = "model-00002-of-00003.safetensors"
    extra = "model.layers.1.mlp.odd_proj.weight"
    save_file({**load_file(sharded / file), extra: torch.ones(shape)}, sharded / file, {"format": "pt"})
    change(sharded, lambda names: names.update({extra: file}))
    assert look_at(str(sharded))["tensors"] == len(Checkpoint.open(sharded).tensors)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=sharded, output=tmp_path / "out"))
    surgeon.apply(tmp_path / "recipe.yaml")
    made = Checkpoint.open(tmp_path / "out/variants/cut")
    assert made.tensors[extra].shape == shape
    from surgeon.diff.comparison import compare

    found = compare(sharded, tmp_path / "out/variants/cut")
    assert found.checkpoints is not None
    assert {item.name for item in found.checkpoints.tensors} == set(made.tensors)
