"""Every family: what each tensor of a decoder layer is, and edits in memory that equal edits on disk."""

from __future__ import annotations

import fnmatch
import io
from pathlib import Path

import pytest
import torch
import transformers
from conftest import FAMILIES, ModelMaker
from rich.console import Console
from safetensors.torch import load_file, save_file

from surgeon.anatomy.scope import left_out, scope, unknown_kinds
from surgeon.api import plan_recipe
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import place
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import CheckpointError, RecipeError
from surgeon.model.editing import Variant, edited
from surgeon.model.model import load_model
from surgeon.operations import Zero
from surgeon.plan.summary import summarize
from surgeon.region.region import Region
from surgeon.region.select import select_random
from surgeon.views.inspection import look_at
from surgeon.views.planned import plan_view
from surgeon.write.staging import write_variant

QKV = {"self_attn.q_proj": "attn.q", "self_attn.k_proj": "attn.k", "self_attn.v_proj": "attn.v"}
GATED = {"mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down"}
TWO_NORMS = {"input_layernorm": "norm", "post_attention_layernorm": "norm"}
LLAMA = {**QKV, "self_attn.o_proj": "attn.o", **GATED, **TWO_NORMS}
GEMMA = {**LLAMA, "pre_feedforward_layernorm": "norm", "post_feedforward_layernorm": "norm"}
QK_NORMS = {"self_attn.q_norm": "norm", "self_attn.k_norm": "norm"}
NEOX_MLP = {"mlp.dense_h_to_4h": "mlp.up", "mlp.dense_4h_to_h": "mlp.down"}
FUSED_ATTENTION = {"self_attention.query_key_value": "attn.qkv", "self_attention.dense": "attn.o", **NEOX_MLP}
OPT = {
    **QKV, "self_attn.out_proj": "attn.o", "self_attn_layer_norm": "norm",
    "fc1": "mlp.up", "fc2": "mlp.down", "final_layer_norm": "norm",
}  # fmt: skip
ATTENTION = {name: role for name, role in LLAMA.items() if not name.startswith("mlp.")}

# The modules of one layer, as the families' authors name them, and their roles.
EXPECTED: dict[str, dict[str, str]] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, **QK_NORMS},
    "gemma2": GEMMA,
    "gemma3": {**GEMMA, **QK_NORMS},
    "phi3": {
        "self_attn.qkv_proj": "attn.qkv", "self_attn.o_proj": "attn.o",
        "mlp.gate_up_proj": "mlp.gate_up", "mlp.down_proj": "mlp.down", **TWO_NORMS,
    },
    "olmo2": {
        **QKV, **QK_NORMS, **GATED,
        "self_attn.o_proj": "attn.o", "post_attention_layernorm": "norm", "post_feedforward_layernorm": "norm",
    },
    "mixtral": {
        **ATTENTION, "block_sparse_moe.gate": "router",
        **{
            f"block_sparse_moe.experts.{expert}.{name}": role
            for expert in range(4) for name, role in (("w1", "mlp.gate"), ("w3", "mlp.up"), ("w2", "mlp.down"))
        },
    },
    "qwen3_moe": {
        **ATTENTION, **QK_NORMS, "mlp.gate": "router",
        **{
            name.replace("mlp.", f"mlp.experts.{expert}."): role
            for expert in range(4) for name, role in GATED.items()
        },
    },
    "gpt2": {
        "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.o", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down",
        "ln_1": "norm", "ln_2": "norm",
    },
    "gpt_neox": {"attention.query_key_value": "attn.qkv", "attention.dense": "attn.o", **NEOX_MLP, **TWO_NORMS},
    "bloom": {**FUSED_ATTENTION, **TWO_NORMS},
    "falcon": {**FUSED_ATTENTION, "ln_attn": "norm", "ln_mlp": "norm"},
    "falcon_7b": {**FUSED_ATTENTION, "input_layernorm": "norm"},
    "opt": OPT,
    "xglm": OPT,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_layer_has_its_role(family: str, make_model: ModelMaker) -> None:
    checkpoint = Checkpoint.open(make_model(family))
    found: dict[int, dict[str, str]] = {0: {}, 1: {}}
    for info in scope(checkpoint).tensors:
        where = place(info, checkpoint.config)
        assert where.layer is not None
        module = info.name.rpartition(".")[0].partition(f".{where.layer}.")[2]
        assert found[where.layer].setdefault(module, where.role) == where.role
    assert found == {0: EXPECTED[family], 1: EXPECTED[family]}


@pytest.mark.parametrize("family", FAMILIES)
def test_outside_of_the_layers_too(family: str, make_model: ModelMaker) -> None:
    checkpoint = Checkpoint.open(make_model(family))
    roles = {name: place(info, checkpoint.config).role for name, info in checkpoint.tensors.items()}
    outer = {name: role for name, role in roles.items() if role in ("embed", "head", "final_norm", "outside", "buffer")}
    assert sum(role == "final_norm" for role in outer.values()) in (1, 2)  # a weight, perhaps a bias
    assert {role for name, role in outer.items() if "embed" in name and "norm" not in name} <= {"embed", "head"}
    assert all("embeddings_layernorm" in name for name, role in outer.items() if role == "outside")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_axis_is_that_of_the_module(family: str, make_model: ModelMaker) -> None:
    """Biases have one entry per output, and attention output and MLP down write to the residual stream."""
    folder = make_model(family)
    checkpoint = Checkpoint.open(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    for info in scope(checkpoint).tensors:
        where = place(info, checkpoint.config)
        if len(info.shape) < 2:
            assert where.output_axis is None
            continue
        assert where.output_axis is not None
        bias = checkpoint.tensors.get(info.name.replace(".weight", ".bias"))
        if bias is not None:
            assert info.shape[where.output_axis] == bias.shape[0]
        if where.role in ("mlp.down", "attn.o"):
            assert info.shape[where.output_axis] == config.hidden_size


def random_region(checkpoint: Checkpoint) -> Region:
    tensors = scope(checkpoint).tensors
    chosen = {info.name: select_random([(info.name, info.numel)], 0.1, seed=1)[info.name] for info in tensors}
    return Region.from_indices(chosen, {info.name: info.shape for info in tensors})


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_in_memory_is_the_edit_on_disk(family: str, make_model: ModelMaker, tmp_path: Path) -> None:
    """The model edited in memory computes what transformers computes from the written variant."""
    checkpoint = Checkpoint.open(make_model(family))
    regions, operations = {"some": random_region(checkpoint)}, [Zero(zero="some")]
    write_variant(checkpoint, operations, regions, tmp_path / "variant")
    tokens = torch.arange(2, 42)[None]

    @torch.inference_mode()
    def logits(model: torch.nn.Module) -> torch.Tensor:
        return model(input_ids=tokens).logits

    loaded = load_model(checkpoint, "float32")
    loaded.weights.fill()
    before = logits(loaded.model)
    written = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "variant").eval()
    variant = Variant("v", operations, regions)
    with edited(loaded, variant, variant.touched(loaded)):
        assert torch.equal(logits(loaded.model), logits(written))
        assert not torch.equal(logits(loaded.model), before)
    assert torch.equal(logits(loaded.model), before)


def test_buffers_beside_the_parameters_are_left_alone(make_model: ModelMaker) -> None:
    """Older checkpoints store causal masks and rotary frequencies, and leave out the base model's prefix."""
    for family, names in {
        "gpt2": ["h.0.attn.bias", "h.0.attn.masked_bias"],
        "gpt_neox": ["layers.0.attention.bias", "layers.0.attention.rotary_emb.inv_freq"],
        "llama": ["layers.0.self_attn.rotary_emb.inv_freq"],
    }.items():
        folder = make_model(family)
        tensors = load_file(folder / "model.safetensors")
        prefix = {"gpt2": "transformer.", "gpt_neox": "gpt_neox.", "llama": "model."}[family]
        expected = {name.removeprefix(prefix) for name in tensors if place_of(name, tensors[name]).in_decoder}
        stored = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        stored |= {name: torch.zeros(1, 1, 4, 4) if name.endswith("bias") else torch.zeros(4) for name in names}
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        checkpoint = Checkpoint.open(folder)
        assert {info.name for info in scope(checkpoint).tensors} == expected
        assert expected <= set(load_model(checkpoint, "float32").parameters)


def place_of(name: str, tensor: torch.Tensor):  # type: ignore[no-untyped-def]
    return place(TensorInfo(name, "F32", tuple(tensor.shape), Path(), 0, 0), {})


def test_towers_of_other_modalities_are_no_decoder() -> None:
    for name in ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", "visual.blocks.3.norm1.weight"):
        assert place_of(name, torch.zeros(4, 4)).role == "vision"


def test_a_tensor_that_the_model_does_not_have_is_left_as_it_is_unless_it_is_named(make_model: ModelMaker) -> None:
    folder = make_model("llama", seed=11)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mystery.weight"] = torch.ones(3, 3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    checkpoint = Checkpoint.open(folder)
    assert scope(checkpoint, ["*mystery*"]).tensors == ()
    chosen = scope(checkpoint, ["model.layers.0.mystery.weight"])
    assert [info.name for info in chosen.tensors] == ["model.layers.0.mystery.weight"]
    assert left_out(checkpoint) == [
        "1 tensor (model.layers.*.mystery.weight) is no part of the model that transformers builds: left as it is"
    ]


def test_a_tensor_that_no_model_holds_is_not_silently_left_unmeasured(make_model: ModelMaker) -> None:
    folder = make_model("llama", seed=12)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mystery.weight"] = torch.ones(3, 3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    checkpoint = Checkpoint.open(folder)
    region = Region.from_masks({"model.layers.0.mystery.weight": torch.ones(3, 3).bool().numpy()})
    with pytest.raises(CheckpointError, match=r"mystery.*is not a parameter of LlamaForCausalLM"):
        Variant("v", [Zero(zero="r")], {"r": region}).touched(load_model(checkpoint, "float32"))


def test_what_a_family_does_not_tell_is_listed(tmp_path: Path) -> None:
    """What scales Doge's residual stream has no role that is known, and plan, inspect and errors say so."""
    config = transformers.DogeConfig(
        vocab_size=258, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=8
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    checkpoint = Checkpoint.open(tmp_path / "model")
    found = unknown_kinds(checkpoint)
    assert "model.layers.*.input_residual" in found
    assert not any("norm" in name or "embed" in name for name in found)
    assert {name for name in checkpoint.tensors if any(fnmatch.fnmatchcase(name, kind) for kind in found)} == {
        info.name for info in scope(checkpoint, ["other"]).tensors
    }
    assert look_at(str(tmp_path / "model"))["unknown_kinds"] == found

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""\
version: 1
name: r
model: {tmp_path / "model"}
regions:
  a: {{select: {{random: 0.1}}, include: ["model.layers.*.input_residual"]}}
output: {tmp_path / "out"}
""")
    console = Console(width=200, file=io.StringIO())
    console.print(plan_view(summarize(plan_recipe(recipe))))
    assert "unknown model.layers.*." in console.file.getvalue()
    assert "input_residual" in console.file.getvalue()
    assert len(plan_recipe(recipe).regions["a"].tensors) == 2


def test_a_family_without_layers_known_here_is_told_how_to_name_its_tensors(
    make_model: ModelMaker, tmp_path: Path
) -> None:
    folder = make_model("llama", seed=13)
    stored = load_file(folder / "model.safetensors")
    renamed = {name.replace("model.layers.", "net.stage."): tensor for name, tensor in stored.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""\
version: 1
name: r
model: {folder}
regions:
  a: {{select: {{random: 0.1}}}}
output: {tmp_path / "out"}
""")
    with pytest.raises(
        RecipeError, match=r"roles of 7 kinds .*net\.stage\.\*\.mlp\.down_proj\.weight.*by such patterns"
    ):
        plan_recipe(recipe)
    recipe.write_text(recipe.read_text().replace("0.1}", '0.1}, include: ["net.stage.*"]'))
    assert len(plan_recipe(recipe).regions["a"].tensors) == 18
