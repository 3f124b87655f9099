"""Models with an encoder are refused in one sentence before anything is read of their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surgeon.api import plan_recipe
from surgeon.errors import CheckpointError

_SMALL = {"vocab_size": 258, "pad_token_id": 1}
_BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2} | {
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64,
}  # fmt: skip
_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "T5ForConditionalGeneration": (
        "T5Config",
        {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1},
        "an encoder-decoder",
    ),
    "BartForConditionalGeneration": ("BartConfig", _BART, "an encoder-decoder .model type 'bart'"),
    "BertForMaskedLM": ("BertConfig", _BERT, "BertForMaskedLM sees later tokens"),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def saved(name: str, **changes: Any) -> Path:
        import transformers
        from conftest import byte_tokenizer

        config, values, _ = MODELS.get(name) or ("BartConfig", _BART, "")
        folder = tmp_path_factory.mktemp(name) / "model"
        model = getattr(transformers, name)(getattr(transformers, config)(**{**_SMALL, **values, **changes}))
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return folder

    return saved


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scored", [True, False])
def test_an_encoder_is_refused_also_where_no_score_is_asked_for(
    name: str, scored: bool, make: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = tmp_path / "r.yaml"
    select = "score: {kind: magnitude}, select: {top: 0.1}" if scored else "select: {random: 0.1}"
    recipe.write_text(f"""\
version: 1
name: r
model: {make(name)}
regions: {{core: {{{select}}}}}
variants: {{cut: {{operations: [{{zero: core}}]}}}}
output: {tmp_path / "out"}
""")
    with pytest.raises(CheckpointError, match=MODELS[name][2]):
        plan_recipe(recipe)
    assert not (tmp_path / "out").exists()


def test_the_decoder_of_such_a_family_alone_is_planned(make: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"""\
version: 1
name: r
model: {make("BartForCausalLM")}
regions: {{core: {{score: {{kind: magnitude}}, select: {{top: 0.1}}}}}}
output: {tmp_path / "out"}
""")
    assert plan_recipe(recipe).regions["core"].entries > 0
