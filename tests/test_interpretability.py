"""`surgeon.cut` on a model as nnsight and TransformerLens hold it, where these are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import surgeon
from surgeon.region.region import Region

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
NAME = "model.layers.0.mlp.down_proj.weight"


def region_of(model: Any) -> Region:
    mask = torch.zeros_like(model.state_dict()[NAME], dtype=torch.bool)
    mask[::2] = True
    return Region.from_masks({NAME: mask.numpy()})


def check(held: Any, model: Any, inputs: torch.Tensor) -> None:
    """What comes out inside is what the plain model gives with these entries at zero; after it, what came before."""
    region, plain = region_of(model), model
    with torch.no_grad():
        before = plain(inputs).logits.clone()
        weight = plain.get_parameter(NAME)
        kept = weight.clone()
        weight[::2] = 0
        expected = plain(inputs).logits.clone()
        weight.copy_(kept)
    run = getattr(held, "original_model", None) or held._module
    with torch.no_grad():
        with surgeon.cut(held, region):
            torch.testing.assert_close(run(inputs).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(run(inputs).logits, before, rtol=1e-4, atol=1e-4)


def test_in_nnsight(llama: Path) -> None:
    nnsight = pytest.importorskip("nnsight", reason="not installed")
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    inside = transformers.AutoModelForCausalLM.from_pretrained(llama)
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    check(nnsight.LanguageModel(inside, tokenizer=tokenizer), model, torch.arange(8)[None])


def test_in_transformer_lens(llama: Path) -> None:
    lens = pytest.importorskip("transformer_lens.model_bridge", reason="not installed")
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    bridge = lens.TransformerBridge.boot_transformers(str(llama), device="cpu", dtype=torch.float32)
    check(bridge, model, torch.arange(8)[None])
