"""Names on disk that are the class's own already stay what they are, as for transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from surgeon.anatomy.slots import map_names

SMALL = {
    "vocab_size": 264, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1,
    "moe_intermediate_size": 32, "intermediate_size": 64, "n_routed_experts": 4, "num_experts": 4,
    "num_experts_per_tok": 2, "q_lora_rank": 16, "head_dim": 16, "qk_rope_head_dim": 8, "index_n_heads": 2,
    "index_head_dim": 16, "index_topk": 8, "sliding_window": 8,
}  # fmt: skip


@pytest.mark.parametrize("family", ["deepseek_v4", "laguna"])
def test_a_renaming_that_fits_a_name_of_the_class_by_accident_is_taken_back(family: str) -> None:
    import transformers

    blank: Any = transformers.AutoConfig.for_model(family)
    config = type(blank)(**{key: value for key, value in SMALL.items() if hasattr(blank, key)})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    names = map_names(model, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    parameters = dict(model.named_parameters())
    assert {name: names.origins[name].parts[0][1] for name in parameters if name in names.origins} == {
        name: name for name in parameters
    }


def test_what_is_known_of_one_stack_goes_for_another_under_its_own_names() -> None:
    """HRM has two stacks of the same shapes; each fused matrix of the one must not lie in the other."""
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    blank: Any = transformers.AutoConfig.for_model("hrm_text")
    config = type(blank)(**{key: value for key, value in SMALL.items() if hasattr(blank, key)})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    stored = revert_weight_conversion(model, dict(model.state_dict()))
    names = map_names(model, {name: tuple(tensor.shape) for name, tensor in stored.items()})
    parameters = dict(model.named_parameters())
    assert set(parameters) <= set(names.origins)
    paths = {id(parameter): path for path, parameter in parameters.items()}
    fused = {name: slot for name, slot in names.slots.items() if len(slot.pieces) > 1}
    assert {name.split(".")[1] for name in fused} == {"H_module", "L_module"}
    for name, slot in fused.items():
        assert {tuple(paths[id(it)].split(".")[1:4]) for it in slot.parameters} == {tuple(name.split(".")[1:4])}
