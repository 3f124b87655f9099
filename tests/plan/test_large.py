"""Plans for models that are not here: their headers are real, their weights are holes in sparse files."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from conftest import byte_tokenizer

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.storage import header_bytes
from surgeon.model import budgets
from surgeon.plan import needs as plan_needs
from surgeon.plan.elsewhere import device_needs
from surgeon.plan.needs import scratch_bytes, shape_of, stores
from surgeon.plan.summary import summarize

# Layers, hidden, feed-forward, query heads, key heads, vocabulary; and the parameters by their makers, in billions.
LLAMAS = {
    "7B": (32, 4096, 11008, 32, 32, 32000, 6.74),
    "70B": (80, 8192, 28672, 64, 8, 128256, 70.6),
    "405B": (126, 16384, 53248, 128, 8, 128256, 405.9),
}
LANGUAGES = ["ar", "es", "ru", "zh", "ko", "vi"]


def sparse_llama(folder: Path, layers: int, hidden: int, wide: int, heads: int, keys: int, vocabulary: int) -> Path:
    """A checkpoint of bfloat16 shards, one per layer, that take no disk."""
    folder.mkdir()
    narrow = hidden // heads * keys
    modules = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.o_proj": (hidden, hidden),
        "self_attn.k_proj": (narrow, hidden), "self_attn.v_proj": (narrow, hidden), "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide), "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    shards = [{f"model.layers.{i}.{module}.weight": shape for module, shape in modules.items()} for i in range(layers)]
    outer = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    shards.append({**outer, "model.norm.weight": (hidden,)})
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header = header_bytes([(tensor, "BF16", shape) for tensor, shape in tensors.items()], {"format": "pt"})
        (folder / name).write_bytes(header)
        os.truncate(folder / name, len(header) + sum(2 * math.prod(shape) for shape in tensors.values()))
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": keys, "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", LLAMAS)
def test_what_a_large_model_takes_is_known_from_its_headers(name: str, tmp_path: Path) -> None:
    layers, hidden, wide, heads, keys, vocabulary, billions = LLAMAS[name]
    folder = sparse_llama(tmp_path / "model", layers, hidden, wide, heads, keys, vocabulary)
    checkpoint = Checkpoint.open(folder)
    assert sum(info.numel for info in checkpoint.tensors.values()) / 1e9 == pytest.approx(billions, rel=0.005)
    model, narrow = f"model={folder}", hidden // heads * keys
    plan = surgeon.plan_recipe("zero_core", output=tmp_path / "out", overrides=[model])
    layer = 2 * hidden * hidden + 2 * hidden * narrow + 3 * hidden * wide + 2 * hidden
    tokens = len(LANGUAGES) * 64 * 256
    found = stores(plan)
    assert found.scratch == 4 * (layers + 5) * tokens * hidden
    assert found.kept + found.not_kept == 4 * len(LANGUAGES) * layers * layer
    # The bound: a gigabyte, three of the largest layer in float32 (or what is as large), one batch's activations.
    largest = max(layer, vocabulary * hidden)
    activations = 4 * 4 * 256 * (12 * hidden + 5 * wide)
    drawing = 34 * hidden * wide + 100_000_000  # of a control, beside them
    made = 8 * hidden * wide  # the scores of one tensor, of its weights and its sum in float32
    assert plan.peak_memory <= 1e9 + 12 * largest + activations + drawing + made
    assert plan.peak_memory >= 12 * layer


def test_what_a_device_takes_is_known_from_headers_and_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_needs, "SHARE_OF_DISK", 0.0)  # scores are not kept
    monkeypatch.setenv(budgets.HOST, "64G")
    layers, hidden, wide, heads, keys, vocabulary, _ = LLAMAS["7B"]
    folder = sparse_llama(tmp_path / "model", layers, hidden, wide, heads, keys, vocabulary)
    few = [f"model={folder}", "regions.core.score.samples=4"]
    plan = surgeon.plan_recipe("zero_core", output=tmp_path / "out", overrides=few)
    stored, score, verify = plan.checkpoint.data_bytes, plan.sampled_scores()[0], plan.recipe.verify
    assert verify is not None
    found = {}
    for said in ("80G", "24G", "4G"):
        monkeypatch.setenv(budgets.DEVICE, said)
        found[said] = device_needs(plan, "cuda")
    tokens, models = len(plan.verify_languages) * verify.tokens, 1 + len(plan.variants)
    states, verified = scratch_bytes(shape_of(plan.checkpoint), score), 4 * (1 + models) * tokens * hidden
    assert 1e9 < verified < states < 6e9  # they stay where they take a quarter of the memory
    assert [found[said].stays for said in found] == [True, False, False]
    passes = 3 + verify.new_tokens
    moved = 3 * states + layers * verified
    assert [found[said].up for said in found] == [stored, passes * stored, passes * stored + moved]
    core = plan.regions["core"].numel
    drawn = [region for name, region in plan.regions.items() if name != "core" and region.score == score]
    down = core // 8 + 4 * core * len(drawn) + 4 * tokens * models
    assert [found[said].down for said in found] == [down, down, down + moved - states]
    assert 4 * stored > found["80G"].memory > 2 * stored > found["24G"].memory > found["4G"].memory
    assert found["4G"].host_memory > found["24G"].host_memory + states / 2
    shown = summarize(plan, device="cuda")
    assert shown.on_device is not None
    assert shown.on_device.memory == found["4G"].memory
    assert shown.peak_memory == found["4G"].host_memory
