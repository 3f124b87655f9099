"""What a plan says of running the model is what the run does: refused for the same reason, held in the same way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ModelMaker, byte_tokenizer

import surgeon
from surgeon.api import plan_recipe
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError
from surgeon.memory import memory_error
from surgeon.model.model import load_model
from surgeon.model.workplace import Workplace
from surgeon.plan.needs import shape_of

VERIFIED = "verify: {tokens: 16, window: 16}\n"


def write(folder: Path, model: Path, texts: dict[str, str], verified: bool) -> Path:
    path = folder / f"{verified}.yaml"
    path.write_text(f"""\
version: 1
name: r
model: {model}
corpus: {{de: {texts["de"]}}}
regions: {{core: {{score: {{kind: magnitude}}, select: {{top: 0.1}}}}}}
variants: {{cut: {{operations: [{{zero: core}}]}}}}
{VERIFIED if verified else ""}output: {folder / "out"}
""")
    return path


CONFIGS: dict[str, dict[str, Any]] = {
    "sizes that do not divide": {"num_key_value_heads": 3},
    "a field of another type": {"hidden_size": "thirty-two"},
    "a family that nobody has": {"model_type": "llama_of_tomorrow"},
}


@pytest.mark.parametrize("why", CONFIGS)
def test_what_the_run_cannot_build_the_plan_refuses(
    why: str, llama: Path, texts: dict[str, str], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    data = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**data, **CONFIGS[why]}))
    with pytest.raises(CheckpointError) as run:
        load_model(Checkpoint.open(model), "float32")
    with pytest.raises(CheckpointError) as planned:
        plan_recipe(write(tmp_path, model, texts, True))
    assert str(planned.value) == str(run.value)
    # What runs no model needs none that can be built.
    assert surgeon.apply(write(tmp_path, model, texts, False)).variants["cut"].written


def test_a_reason_that_may_go_is_not_kept(
    llama: Path, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that was short, or a package that was missing, may be there the next time."""
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    path = write(tmp_path, model, texts, True)
    with monkeypatch.context() as patched:
        patched.setattr("surgeon.model.model.build_model", no_memory)
        with pytest.raises(CheckpointError) as planned:
            plan_recipe(path)
        assert memory_error(planned.value) is not None  # which the command line ends with 3 for
    assert plan_recipe(path).runs_model


def no_memory(*_: Any, **__: Any) -> Any:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 320000 bytes")


def attentive_to_all_layers(folder: Path) -> Path:
    """A model whose layers see other layers' outputs, so that they are no plain stack."""
    import transformers

    config = transformers.AutoConfig.for_model(
        "inkling2_text", vocab_size=258, bos_token_id=0, eos_token_id=1, pad_token_id=1, hidden_size=32,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=48,
        moe_intermediate_size=16, n_routed_experts=4, num_experts=4, num_experts_per_tok=2, n_shared_experts=1,
        sliding_window=8, max_position_embeddings=256,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


FAMILIES: dict[str, Callable[[ModelMaker, Path], Path]] = {
    "llama": lambda make, folder: make("llama"),
    "gpt2": lambda make, folder: make("gpt2"),
    "mixtral": lambda make, folder: make("mixtral"),
    "inkling2_text": lambda make, folder: attentive_to_all_layers(folder),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_says_whether_layers_are_run_one_by_one(
    family: str, make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    model = FAMILIES[family](make_model, tmp_path / "model")
    path = write(tmp_path, model, texts, True)
    before = shape_of(plan_recipe(path).checkpoint).whole
    stack = Workplace("cpu", 1).load(Checkpoint.open(model), "float32")
    after = shape_of(plan_recipe(path).checkpoint).whole
    assert after == (not stack.layers) == (family == "inkling2_text")
    # What only a comparison with the whole model shows is known from the first run on.
    assert before == after or family == "inkling2_text"
