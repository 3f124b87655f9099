"""What travels with a variant: what makes the weights usable, and nothing that may hold other weights or secrets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.write.companions import companions, copy_companions

WANTED = [
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model", "tokenizer.model.v3", "spiece.model", "vocab.json", "vocab.txt",
    "vocab.bpe", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "qwen.tiktoken", "tekken.json", "modeling_own.py", "code/configuration_own.py", "LICENSE",
    "LICENSE.txt", "NOTICE", "USE_POLICY.md", "sub/vocab.txt",
]  # fmt: skip
UNWANTED = [
    "pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf", "rust_model.ot", "tf_model.h5",
    "flax_model.msgpack", "model.ckpt.data-00000-of-00001", "model.ckpt.index", "model.ckpt.meta", "old.pt", "a.pth",
    "adapter_model.safetensors", "adapter_config.json", "consolidated.00.pth", "model.onnx", "model.onnx_data",
    "model.tflite", "weights.npz", "weights.npy", "weights", "model", "optimizer.pt", "trainer_state.json",
    "training_args.bin", "README.md", "notes.txt", "secrets.env", ".git/config", ".netrc", "tokenizer.bin",
    "vocab.safetensors", "tokenizer.json.bak", "openvino_model.xml", "coreml/model.mlmodel", "lora.model",
    "tokenizer_model.pt", "data.parquet", "freeze/region.safetensors", "surgeon.json",
]  # fmt: skip


@pytest.fixture
def source(llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    shutil.copyfile(llama / "model.safetensors", folder / "model.safetensors")
    for name in WANTED + UNWANTED:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("{}")
    for name in ("tokenizer.model", "tokenizer.model.v3", "spiece.model"):
        (folder / name).write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (folder / "lora.model").write_bytes(b"PK\x03\x04 a pickle in an archive")
    return folder


def test_known_names_come_along_and_nothing_else(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    copied = copy_companions(Checkpoint.open(source), target)
    assert sorted(copied) == sorted(WANTED)
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()) == sorted(WANTED)


def test_links_that_lead_out_of_the_source_are_not_followed(source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    (source / "tokenizer_secret.json").symlink_to(secret)
    (source / "vocab_relative.json").symlink_to("../id_rsa")
    (source / "merges_chain.txt").symlink_to("tokenizer_secret.json")
    (source / "tokenizer_inside.json").symlink_to(source / "config.json")
    kept, left = companions(Checkpoint.open(source))
    assert Path("tokenizer_inside.json") in kept
    assert [path.name for path in left] == ["merges_chain.txt", "tokenizer_secret.json", "vocab_relative.json"]
    target = tmp_path / "target"
    target.mkdir()
    copy_companions(Checkpoint.open(source), target)
    assert not any("secret" in path.read_text(errors="replace") for path in target.rglob("*") if path.is_file())
    assert not (target / "tokenizer_inside.json").is_symlink()


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
    kept, left = companions(Checkpoint.open(snapshot))
    assert ([path.name for path in kept], [path.name for path in left]) == (
        ["config.json", "tokenizer.json"],
        ["vocab.json"],
    )
