"""What a library says is quoted as a whole, and what it guesses wrong is put right."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from surgeon.anatomy.hollow import architecture
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError
from surgeon.model.tokenizer import load_tokenizer


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def configure(folder: Path, **changes: object) -> Checkpoint:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return Checkpoint.open(folder)


def test_a_field_of_another_kind_is_named_with_its_value(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json.*'rms_norm_eps' expected float, got str .*1e-5") as caught:
        architecture(configure(folder, rms_norm_eps="1e-5"))
    assert "causal language model" not in str(caught.value)
    with pytest.raises(CheckpointError, match="model_type 'llama9' is none that transformers"):
        architecture(configure(folder, rms_norm_eps=1e-5, model_type="llama9"))


@pytest.mark.parametrize("said", [{"dtype": "auto"}, {"torch_dtype": "auto"}, {"dtype": "half precision"}])
def test_what_a_config_says_of_dtypes_does_not_matter(folder: Path, said: dict[str, str]) -> None:
    assert architecture(configure(folder, **said)).model_class.__name__ == "LlamaForCausalLM"


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is here")
def test_a_vocabulary_whose_package_is_missing(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer beside the weights; copy its files"):
        load_tokenizer(Checkpoint.open(folder))
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: .*`pip install sentencepiece protobuf`"):
        load_tokenizer(Checkpoint.open(folder))


def test_a_damaged_tokenizer_gets_no_remedy_that_does_not_help(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "XX"}}')
    with pytest.raises(CheckpointError, match=r"makes no tokenizer of tokenizer\.json") as caught:
        load_tokenizer(Checkpoint.open(folder))
    assert "copy" not in str(caught.value)
