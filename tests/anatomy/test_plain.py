"""Names that are plain give the same answer as the model that transformers builds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from surgeon.anatomy.anatomy import PLAIN, plain_places
from surgeon.anatomy.reading import read_places
from surgeon.checkpoint.checkpoint import Checkpoint


@pytest.mark.parametrize("family", sorted(PLAIN))
def test_plain_names_say_what_the_model_says(make_model: Callable[..., Path], family: str) -> None:
    checkpoint = Checkpoint.open(make_model(family))
    plain = plain_places(checkpoint)
    assert plain is not None
    assert plain == read_places(checkpoint)
    assert {where.role for where in plain.values()} >= {"embed", "final_norm", "norm", "attn.o", "mlp.down"}


@pytest.mark.parametrize("biases", [{"attention_bias": True}, {"mlp_bias": True}, {"tie_word_embeddings": True}])
def test_plain_names_with_biases_and_ties(make_model: Callable[..., Path], biases: dict[str, bool]) -> None:
    checkpoint = Checkpoint.open(make_model("llama", **biases))
    assert plain_places(checkpoint) == read_places(checkpoint)


@pytest.mark.parametrize("name", ["mtp.layers.0.fc.weight", "model.layers.2.mlp.up_proj.weight", "adapter.weight"])
def test_one_tensor_beside_makes_the_names_not_plain(llama: Path, tmp_path: Path, name: str) -> None:
    tensors = load_file(llama / "model.safetensors")
    save_file(tensors | {name: np.ones((4, 4), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    assert plain_places(Checkpoint.open(llama)) is not None
    assert plain_places(Checkpoint.open(tmp_path)) is None
