"""What travels with a variant: what makes the weights usable, and nothing that may hold other weights or secrets."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.companions import companions, is_tokenizers
from surgeon.errors import CheckpointError
from surgeon.write.copying import copy_companions

SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
WANTED = [
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model", "tokenizer.model.v3", "spiece.model", "vocab.json", "vocab.txt",
    "vocab.bpe", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "qwen.tiktoken", "tiktoken.model", "tekken.json", "modeling_own.py", "helpers_own.py",
    "code/configuration_own.py", "tokenization_own.py", "additional_chat_templates/tools.jinja",
    "custom_generate/generate.py", "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md",
]  # fmt: skip
LEFT_OUT = [
    "pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf", "rust_model.ot", "tf_model.h5",
    "flax_model.msgpack", "model.ckpt.data-00000-of-00001", "model.ckpt.index", "model.ckpt.meta", "old.pt", "a.pth",
    "consolidated.00.pth", "model.onnx", "model.onnx_data", "model.tflite", "weights.npz", "weights.npy", "weights",
    "model", "optimizer.pt", "trainer_state.json", "training_args.bin", "notes.txt", "secrets.env", "tokenizer.bin",
    "vocab.safetensors", "tokenizer.json.bak", "openvino_model.xml", "lora.model", "tokenizer_model.pt",
    "data.parquet", "train.py", "._config.json", "._model.safetensors", "scheduler.pt", "rng_state.pth",
    "model-mtp-of-00002.safetensors", "model.safetensors.index.json",
]  # fmt: skip
# Folders, of which one name is told for all that lies in them.
FOLDERS = ["coreml/model.mlmodel", "checkpoint-500/config.json", "checkpoint-500/train.py", "sub/vocab.txt",
           "original/tokenizer.model", "freeze/region.safetensors"]  # fmt: skip
# What is surgeon's own, or nobody's business.
UNTOLD = ["README.md", ".git/config", ".netrc", "surgeon.json"]


@pytest.fixture
def source(llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    shutil.copyfile(llama / "model.safetensors", folder / "model.safetensors")
    for name in WANTED + LEFT_OUT + FOLDERS + UNTOLD:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("{}")
    for name in ("tokenizer.model", "tokenizer.model.v3", "spiece.model"):
        (folder / name).write_bytes(SENTENCEPIECE)
    (folder / "tiktoken.model").write_text("IQ== 0\nIg== 1\n")
    (folder / "lora.model").write_bytes(b"PK\x03\x04 a pickle in an archive")
    own = {
        "AutoConfig": "code/configuration_own.Own",
        "AutoModelForCausalLM": "modeling_own.Own",
        "AutoModel": "../x.Y",
        "AutoBackbone": "org/other--modeling.Theirs",
    }
    (folder / "config.json").write_text(json.dumps({"auto_map": own}))
    tokenizers = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizers))
    (folder / "modeling_own.py").write_text("import os\nfrom .helpers_own import help\nfrom . import nothing\n")
    return folder


def test_known_names_come_along_and_nothing_else(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    copied = copy_companions(Checkpoint.open(source), target)
    assert sorted(copied) == sorted(WANTED)
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()) == sorted(WANTED)


def test_what_is_left_out_is_told_by_name(source: Path) -> None:
    found = companions(Checkpoint.open(source))
    folders = {f"{name.split('/')[0]}/" for name in FOLDERS}
    assert set(found.left_out) == {*LEFT_OUT, *folders}
    said = "\n".join(found.notes)
    assert all(name in said for name in found.left_out)
    assert found.left_out["train.py"] != found.left_out["optimizer.pt"] != found.left_out["pytorch_model.bin"]


def test_vocabularies_of_every_tokenizer_of_transformers_come_along() -> None:
    """Read off its sources, for whatever it reads that is missing makes another tokenizer, or none."""
    import transformers

    names: set[str] = set()
    for path in Path(transformers.__file__).parent.joinpath("models").rglob("tokenization_*.py"):
        for block in re.findall(r"(?i)vocab_files_names\s*=\s*\{([^}]*)\}", path.read_text("utf-8")):
            names.update(re.findall(r':\s*\(?"([^"]+\.[^"]+)"', block))
    assert len(names) > 20
    assert {name for name in names if not is_tokenizers(name)} == set()


def test_links_that_lead_out_of_the_source_are_not_followed(source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    (source / "tokenizer_secret.json").symlink_to(secret)
    (source / "vocab_relative.json").symlink_to("../id_rsa")
    (source / "merges_chain.txt").symlink_to("tokenizer_secret.json")
    (source / "tokenizer_inside.json").symlink_to(source / "config.json")
    found = companions(Checkpoint.open(source))
    assert Path("tokenizer_inside.json") in found.files
    links = [name for name, reason in found.left_out.items() if "link" in reason]
    assert links == ["merges_chain.txt", "tokenizer_secret.json", "vocab_relative.json"]
    target = tmp_path / "target"
    target.mkdir()
    copy_companions(Checkpoint.open(source), target)
    assert not any("secret" in path.read_text(errors="replace") for path in target.rglob("*") if path.is_file())
    assert not (target / "tokenizer_inside.json").is_symlink()


def test_a_folder_in_which_transformers_looks_is_left_out_only_by_its_files(source: Path) -> None:
    (source / "custom_generate" / "generate.py").unlink()
    before = companions(Checkpoint.open(source))
    assert not any("custom_generate" in name for name in before.left_out)
    for name in ("generate.py", "notes.md"):
        (source / "custom_generate" / name).write_text("pass")
    found = companions(Checkpoint.open(source))
    assert set(found.files) - set(before.files) == {Path("custom_generate/generate.py")}
    assert found.left_out.keys() - before.left_out.keys() == {"custom_generate/notes.md"}


@pytest.mark.parametrize("name", [b"w\xc3\xa4.safetensors", b"w\xff.safetensors"])
def test_an_index_is_made_for_weights_of_any_name(name: bytes, llama: Path, tmp_path: Path) -> None:
    shutil.copyfile(llama / "model.safetensors", tmp_path / os.fsdecode(name))
    shutil.copyfile(llama / "config.json", tmp_path / "config.json")
    (index,) = companions(Checkpoint.open(tmp_path)).added.values()
    assert index.isascii()
    assert set(json.loads(index)["weight_map"].values()) == {os.fsdecode(name)}


def test_links_of_the_hubs_cache_are_followed(source: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copyfile(source / name, blobs / f"hash-of-{name}")
        (snapshot / name).symlink_to(Path("../../blobs") / f"hash-of-{name}")
    (tmp_path / "hub" / "token").write_text("secret")
    (snapshot / "vocab.json").symlink_to("../../../token")
    found = companions(Checkpoint.open(snapshot))
    assert [path.name for path in found.files] == ["config.json", "tokenizer.json"]
    assert list(found.left_out) == ["vocab.json"]


RECIPE = """\
version: 1
name: r
model: {model}
regions: {{a: {{select: {{random: 0.1}}}}}}
variants: {{cut: {{operations: [{{zero: a}}]}}}}
output: {output}
"""


def test_a_folder_of_links_into_a_store_makes_variants_that_load(llama: Path, tmp_path: Path) -> None:
    """Links lead where the weights lie, so what they lead to belongs to the model."""
    import transformers

    linked = tmp_path / "linked"
    linked.mkdir()
    for path in llama.iterdir():
        (linked / path.name).symlink_to(path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=linked, output=tmp_path / "out"))
    surgeon.apply(tmp_path / "recipe.yaml")
    variant = tmp_path / "out/variants/cut"
    assert not any(path.is_symlink() for path in variant.rglob("*"))
    lost = transformers.AutoModelForCausalLM.from_pretrained(variant, output_loading_info=True)[1]
    assert lost["missing_keys"] == set()
    assert transformers.AutoTokenizer.from_pretrained(variant)("a").input_ids


def test_no_variant_is_published_that_would_not_load(llama: Path, tmp_path: Path) -> None:
    """A config that lies elsewhere than the weights is not followed, and so nothing is made; a plan says so too."""
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    (source / "config.json").rename(tmp_path / "elsewhere.json")
    (source / "config.json").symlink_to("../elsewhere.json")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=source, output=tmp_path / "out"))
    with pytest.raises(CheckpointError, match=r"config\.json: a link that leads out of the folder"):
        surgeon.plan_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(CheckpointError, match=r"config\.json: a link that leads out of the folder"):
        surgeon.apply(tmp_path / "recipe.yaml")
    assert not (tmp_path / "out").exists()
