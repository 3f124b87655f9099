"""Models whose layers look elsewhere than a plain stack's are measured as they are, or refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from measured import measure_variants

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.measure.perplexity import EvaluationText
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import Stack, make_stack
from surgeon.model.model import load_model
from surgeon.progress import Progress
from surgeon.text.windows import Window


def saved(folder: Path, model_type: str, **config: Any) -> Path:
    import transformers
    from conftest import byte_tokenizer

    torch.manual_seed(0)
    made = transformers.AutoConfig.for_model(
        model_type, vocab_size=258, bos_token_id=0, eos_token_id=1, pad_token_id=1, **config
    )
    model = transformers.AutoModelForCausalLM.from_config(made).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def stack_of(folder: Path) -> Stack:
    return make_stack(load_model(Checkpoint.open(folder), "float32"))


def reference(folder: Path, windows: tuple[Window, ...]) -> float:
    """Sum of losses by plain transformers, one window at a time."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total = 0.0
    for window in windows:
        with torch.inference_mode():
            logits = model(torch.tensor([window.inputs])).logits[0]
        counted = logits[-len(window.labels) :].double()
        total += float(torch.nn.functional.cross_entropy(counted, torch.tensor(window.labels), reduction="sum"))
    return total


INKLING = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts": 4,
    "num_experts_per_tok": 2, "n_shared_experts": 1, "sliding_window": 8, "max_position_embeddings": 256,
}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
CPM = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48,
    "prompt_types": 2, "prompt_length": 4, "segment_types": 2, "position_bias_num_buckets": 8,
    "position_bias_max_distance": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "config", "whole"),
    [("inkling2_text", INKLING, True), ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, False)],
)
def test_losses_are_those_of_the_whole_model(
    tmp_path: Path, model_type: str, config: dict[str, Any], whole: bool
) -> None:
    """Layers of Inkling 2 are given what earlier layers gave, which is found out; CPM-Ant's see what follows."""
    folder = saved(tmp_path / "m", model_type, **config)
    stack = stack_of(folder)
    assert (stack.layers == ()) == whole
    ids = torch.randint(3, 258, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    windows = tuple(
        Window(tuple(ids[at : at + n]), tuple(ids[at + 1 : at + n + 1])) for at, n in ((0, 12), (12, 12), (24, 7))
    )
    found = measure_variants(stack, [Variant("base")], {"xx": EvaluationText(windows, 40)}, 3, Progress())
    assert math.isclose(found["base"]["xx"].nll, reference(folder, windows), rel_tol=1e-5)


def test_layers_that_return_lists(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "openai-gpt", n_embd=32, n_layer=2, n_head=4, n_positions=64)
    stack = stack_of(folder)
    ids = tuple(range(3, 20))
    windows = (Window(ids[:-1], ids[1:]),)
    found = measure_variants(stack, [Variant("base")], {"xx": EvaluationText(windows, 40)}, 3, Progress())
    assert math.isclose(found["base"]["xx"].nll, reference(folder, windows), rel_tol=1e-5)
