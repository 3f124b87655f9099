"""What every tensor is, as the model itself says it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from surgeon.anatomy import anatomy
from surgeon.anatomy.anatomy import anatomy_of
from surgeon.anatomy.scope import left_out, scope
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import Place
from surgeon.checkpoint.store import cache_folder
from surgeon.errors import RecipeError

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 258, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 12, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "head_dim": 4,
    "num_key_value_heads": 4,
}  # fmt: skip
EXPERTS = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "head_dim": 8,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_tiny("deepseek_v3", **config)` -> a folder with a random model of any causal type."""

    def make(model_type: str, **config: object) -> Path:
        import torch
        import transformers
        from conftest import byte_tokenizer

        torch.manual_seed(0)
        made = transformers.AutoConfig.for_model(model_type, **{**SMALL, **config})
        model = transformers.AutoModelForCausalLM.from_config(made).float()
        folder = tmp_path_factory.mktemp(model_type) / "model"
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def deepseek(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny("deepseek_v3", **LATENT, **EXPERTS)


def with_tensors(folder: Path, to: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Copy a checkpoint and store more tensors beside its own."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    save_file(load_file(folder / "model.safetensors") | tensors, to / "model.safetensors", {"format": "pt"})
    return to


def places(folder: Path) -> dict[str, Place]:
    return dict(anatomy_of(Checkpoint.open(folder)).places)


def test_what_a_router_counts_is_no_parameter(deepseek: Path) -> None:
    found = places(deepseek)
    balance = found["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert (balance.kind, balance.layer, balance.role) == ("buffer", 1, "buffer")
    assert found["model.layers.1.mlp.gate.weight"].role == "router"
    assert not any(
        info.name.endswith("e_score_correction_bias") for info in scope(Checkpoint.open(deepseek), ["*"]).tensors
    )


def test_a_model_that_asks_its_config_for_a_dtype_is_built(make_tiny: Callable[..., Path]) -> None:
    """Apertus computes two numbers of its activation in it, and trains two others."""
    found = anatomy_of(Checkpoint.open(make_tiny("apertus")))
    assert found.unbuilt is None
    kinds = {name: found.places[f"model.layers.0.mlp.act_fn.{name}"].kind for name in ("beta", "eps", "alpha_p")}
    assert kinds == {"beta": "buffer", "eps": "buffer", "alpha_p": "parameter"}


def test_latent_attention_and_experts_have_roles(deepseek: Path) -> None:
    found = places(deepseek)
    roles = {name.removeprefix("model.layers.1."): where.role for name, where in found.items() if where.layer == 1}
    assert roles["self_attn.q_a_proj.weight"] == "attn.q_a"
    assert roles["self_attn.q_b_proj.weight"] == "attn.q_b"
    assert roles["self_attn.kv_a_proj_with_mqa.weight"] == "attn.kv_a"
    assert roles["self_attn.kv_b_proj.weight"] == "attn.kv_b"
    assert roles["self_attn.kv_a_layernorm.weight"] == "norm"
    assert roles["mlp.experts.0.gate_proj.weight"] == "mlp.gate"
    checkpoint = Checkpoint.open(deepseek)
    experts = {info.name for info in scope(checkpoint, ["experts"]).tensors}
    shared = {info.name for info in scope(checkpoint, ["shared_experts"]).tensors}
    assert experts == {name for name in found if ".experts." in name} != set()
    assert shared == {name for name in found if ".shared_experts." in name} != set()
    assert not scope(checkpoint, ["attn", "mlp", "router", "norm"]).unmatched
    assert {w.role for w in found.values() if w.layer is not None} & {"other", "attn.other", "mlp.other"} == set()


def test_a_layer_too_many_is_no_part_of_the_model(deepseek: Path, tmp_path: Path) -> None:
    before = load_file(deepseek / "model.safetensors")
    more = {n.replace("layers.1.", "layers.2."): v for n, v in before.items() if ".layers.1." in n}
    folder = with_tensors(deepseek, tmp_path / "m", more)
    found = places(folder)
    assert {(found[name].kind, found[name].layer, found[name].role) for name in more} == {("absent", None, "mtp")}
    assert {n: w for n, w in found.items() if n not in more} == places(deepseek)
    lines = left_out(Checkpoint.open(folder))
    assert any(line.startswith(f"{len(more)} tensors (model.layers.2.") for line in lines) or any(
        str(len(more)) in line and "predicting several tokens" in line for line in lines
    )


def test_heads_of_several_tokens_are_never_layer_0(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    plain = make_tiny("qwen3_next", **DELTA)
    extra = {
        "mtp.layers.0.mlp.gate.weight": np.ones((4, 32), np.float32),
        "mtp.layers.0.self_attn.q_proj.weight": np.ones((64, 32), np.float32),
        "mtp.fc.weight": np.ones((32, 64), np.float32),
    }
    checkpoint = Checkpoint.open(with_tensors(plain, tmp_path / "m", extra))
    assert {anatomy_of(checkpoint).places[name].role for name in extra} == {"mtp"}
    chosen = {info.name for info in scope(checkpoint).tensors}
    assert chosen
    assert not chosen & set(extra)
    assert not {info.name for info in scope(checkpoint, ["*.layers.0.*"]).tensors} & set(extra)
    assert {info.name for info in scope(checkpoint, ["mtp"]).tensors} == set(extra)


@pytest.mark.parametrize(
    ("model_type", "config", "roles"),
    [
        ("qwen3_next", {**DELTA, "num_hidden_layers": 4}, {
            "layers.0.linear_attn.in_proj_qkvz.weight": "linear_attn.in",
            "layers.0.linear_attn.A_log": "linear_attn.other",
            "layers.0.linear_attn.out_proj.weight": "linear_attn.o", "layers.3.self_attn.o_proj.weight": "attn.o",
            "layers.0.mlp.shared_expert_gate.weight": "router", "layers.0.linear_attn.norm.weight": "norm",
        }),
        ("granitemoehybrid", {**MAMBA, "layer_types": ["mamba", "attention"], "num_local_experts": 4,
                              "num_experts_per_tok": 2, "shared_intermediate_size": 16}, {
            "layers.0.mamba.in_proj.weight": "ssm.in", "layers.0.mamba.out_proj.weight": "ssm.out",
            "layers.0.mamba.conv1d.weight": "ssm.conv", "layers.0.mamba.norm.weight": "norm",
            "layers.1.self_attn.q_proj.weight": "attn.q",
            "layers.0.block_sparse_moe.input_linear.weight": "mlp.gate_up",
            "layers.0.block_sparse_moe.output_linear.weight": "mlp.down",
            "layers.0.block_sparse_moe.router.layer.weight": "router",
        }),
        ("phi", {}, {"layers.0.self_attn.dense.weight": "attn.o", "layers.0.mlp.fc2.weight": "mlp.down"}),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}, {
            "layers.0.mlp.experts.gate_up_proj": "mlp.gate_up", "layers.0.mlp.experts.gate_up_proj_bias": "mlp.gate_up",
            "layers.0.mlp.experts.down_proj": "mlp.down", "layers.0.self_attn.sinks": "attn.other",
        }),
        ("olmo", {}, {"layers.0.self_attn.o_proj.weight": "attn.o"}),
        ("lfm2", {"block_ff_dim": 48, "layer_types": ["conv", "full_attention"]}, {
            "layers.0.conv.in_proj.weight": "conv.in", "layers.0.conv.out_proj.weight": "conv.out",
            "layers.1.self_attn.out_proj.weight": "attn.o",
        }),
    ],
)  # fmt: skip
def test_roles_by_what_a_module_is(
    make_tiny: Callable[..., Path], model_type: str, config: dict[str, object], roles: dict[str, str]
) -> None:
    found = places(make_tiny(model_type, **config))
    assert {name: found[f"model.{name}"].role for name in roles} == roles
    assert "other" not in {where.role for where in found.values()}


def test_experts_one_below_the_other_have_their_outputs_on_the_hidden_axis(make_tiny) -> None:  # type: ignore[no-untyped-def]
    """DBRX multiplies by w2 as it stands, and by w1 and v1 turned over."""
    config = {
        "d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    }  # fmt: skip
    found = places(make_tiny("dbrx", **config))
    axes = {name: found[f"transformer.blocks.0.ffn.experts.mlp.{name}"].output_axis for name in ("w1", "v1", "w2")}
    assert axes == {"w1": 0, "v1": 0, "w2": 1}


def test_a_damaged_anatomy_is_read_again(deepseek: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(deepseek)
    monkeypatch.setattr(anatomy, "_known", {})
    first = anatomy_of(checkpoint)
    kept = next((cache_folder() / "anatomy").glob("*.json"))
    data = bytearray(kept.read_bytes())
    at = data.index(b'"tensors"')
    number = data.index(b": 0", at)
    data[number + 2 : number + 3] = b"1"  # of a tensor another place
    kept.write_bytes(data)
    monkeypatch.setattr(anatomy, "_known", {})
    assert anatomy_of(checkpoint) == first


def test_the_second_time_nothing_is_built(deepseek: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anatomy, "_known", {})
    first = anatomy_of(Checkpoint.open(deepseek))
    program = (
        "import sys\nfrom surgeon.anatomy.anatomy import anatomy_of\n"
        "from surgeon.checkpoint.checkpoint import Checkpoint\n"
        f"print(anatomy_of(Checkpoint.open({str(deepseek)!r})).places)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == f"{first.places}\nFalse False\n"


def test_an_architecture_that_transformers_lacks_is_told_by_names(llama: Path, tmp_path: Path) -> None:
    folder = with_tensors(llama, tmp_path / "m", {})
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "of_tomorrow"}
    (folder / "config.json").write_text(json.dumps(config))
    found = anatomy_of(Checkpoint.open(folder))
    assert "of_tomorrow" in str(found.unbuilt)
    assert found.places == anatomy_of(Checkpoint.open(llama)).places


def test_a_run_cuts_the_text_model_and_leaves_the_rest_byte_for_byte(
    deepseek: Path, tmp_path: Path, texts: dict[str, str]
) -> None:
    import surgeon

    before = load_file(deepseek / "model.safetensors")
    more = {n.replace("layers.1.", "layers.2."): v for n, v in before.items() if ".layers.1." in n}
    folder = with_tensors(deepseek, tmp_path / "m", more)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""\
version: 1
name: test
model: {folder}
corpus: {{de: {texts["de"]}}}
regions:
  core: {{score: {{kind: grad_param, languages: [de], samples: 2, sequence_length: 16}}, select: {{top: 0.05}}}}
variants: {{cut: {{operations: [{{zero: core}}]}}}}
verify: {{tokens: 16, window: 16}}
output: {tmp_path / "out"}
""")
    report = surgeon.apply(recipe)
    after = load_file(tmp_path / "out/variants/cut/model.safetensors")
    source = load_file(folder / "model.safetensors")
    for name, values in source.items():
        inside = ".layers.0." in name or ".layers.1." in name
        cut = int(0.05 * values.size) if inside and not name.endswith("e_score_correction_bias") else 0
        assert np.count_nonzero(after[name].view(np.uint8) != values.view(np.uint8)) == 0 or cut, name
        assert np.count_nonzero((after[name] == 0) & (values != 0)) == min(cut, np.count_nonzero(values)), name
    lines = report.model.left_out
    assert [line.split(" ", 1)[0] for line in lines] == ["1", str(len(more))]
    card = (tmp_path / "out/variants/cut/README.md").read_text("utf-8")
    assert "trained by no gradient" in card
    assert "predicting several tokens" in (tmp_path / "out/report.html").read_text("utf-8")


def test_what_convolves_is_no_matrix_and_has_an_output_of_each_channel(make_tiny: Callable[..., Path]) -> None:
    folder = make_tiny("granitemoehybrid", **MAMBA, layer_types=["mamba", "attention"], num_local_experts=4,
                       num_experts_per_tok=2, shared_intermediate_size=16)  # fmt: skip
    found = places(folder)
    convolution = found["model.layers.0.mamba.conv1d.weight"]
    assert (convolution.output_axis, convolution.matrix) == (0, False)
    assert found["model.layers.0.mamba.in_proj.weight"].matrix
    assert not found["model.layers.0.mamba.D"].matrix


def test_a_plan_without_norms_to_exclude_says_so_and_goes_on(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    import io

    from rich.console import Console

    import surgeon
    from surgeon.plan.summary import summarize
    from surgeon.views.planned import plan_view

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""\
version: 1
name: test
model: {make_tiny("olmo")}
regions:
  some: {{score: {{kind: magnitude}}, select: {{top: 0.1, scope: output}}, exclude: [norm]}}
output: {tmp_path / "out"}
""")
    console = Console(width=200, file=io.StringIO())
    console.print(plan_view(summarize(surgeon.plan_recipe(recipe))))
    assert "region 'some' excludes norm, which the model does not have" in console.file.getvalue()
    recipe.write_text(recipe.read_text().replace("exclude: [norm]", "exclude: [nrom]"))
    with pytest.raises(RecipeError, match="'nrom' names no role and no tensor"):
        surgeon.plan_recipe(recipe)
