"""Activation scores against forward hooks on whole models in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import ModelMaker
from test_other_scores import TEXT, regions_of, write_recipe

from surgeon.anatomy.scope import scope
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import place
from surgeon.errors import InputError
from surgeon.model.layer_stack import make_stack
from surgeon.model.model import load_model
from surgeon.progress import Progress
from surgeon.region.units import parts_of
from surgeon.scores.activation import Activation, Measure
from surgeon.scores.score_pass import ScorePass
from surgeon.text.windows import scoring_sequences, tokenize

# Each one's own words for the activation function and the down matrix.
MODULES = {"llama": ("act_fn", "down_proj"), "phi3": ("activation_fn", "down_proj"), "gpt2": ("act", "c_proj")}


def rows_of(folder: Path) -> list[list[int]]:
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    return [ids[i : i + 32] for i in range(0, len(ids) - 31, 32)][:6]


def ours(folder: Path, measure: Measure, batch: int = 2) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint.open(folder)
    spec = Activation(kind="activation", measure=measure, languages=["de"], batch_size=batch)
    tensors = [i for i in scope(checkpoint).tensors if spec.can_score(i, place(i, checkpoint.config))]
    stack = make_stack(load_model(checkpoint, "float32"))
    sequences = scoring_sequences(tokenize(stack.loaded.tokenizer, TEXT), (), 6, 32)
    sweep = ScorePass(stack, {"de": sequences}, tensors, spec, Progress())
    found: dict[str, np.ndarray] = {}
    with sweep.scratch("test") as scratch:
        for _, _, scores in sweep.run(scratch, scratch.progress()):
            found |= {name: np.array(values) for name, values in scores.items()}
    assert found.keys() == {info.name for info in tensors}
    return found


def hooked(folder: Path) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """What each layer's activation function gives, and what its down matrix takes and gives, token by token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
    act, down = MODULES[model.config.model_type]
    seen: tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]] = ([], [], [])

    def keep(what: int, index: int, value: torch.Tensor) -> None:
        seen[what].append(value.flatten(0, -2))
        assert len(seen[what]) == index

    for number, layer in enumerate(model.model.layers if hasattr(model, "model") else model.transformer.h, 1):
        getattr(layer.mlp, act).register_forward_hook(lambda m, i, o, n=number: keep(0, n, o))
        getattr(layer.mlp, down).register_forward_hook(
            lambda m, i, o, n=number: (keep(1, n, i[0]), keep(2, n, o))[2:] or None
        )
    with torch.no_grad():
        model(torch.tensor(rows_of(folder)))
    return seen


def spread(folder: Path, name: str, neurons: torch.Tensor) -> np.ndarray:
    """A figure per neuron at each of its entries, found by the units that test_units.py checks."""
    checkpoint = Checkpoint.open(folder)
    info = checkpoint.tensors[name]
    part = parts_of("neuron", name, info.shape, place(info, checkpoint.config), checkpoint.config)
    assert part is not None
    result = np.zeros(info.numel)
    for neuron, value in enumerate(neurons.tolist()):
        wanted = np.arange(len(neurons)) == neuron
        result[part.entries(wanted)] = value
    return result.reshape(info.shape)


@pytest.mark.parametrize("family", MODULES)
def test_each_entry_of_a_neuron_has_the_neurons_figure(family: str, make_model: ModelMaker) -> None:
    folder = make_model(family)
    after, into, out = hooked(folder)
    config = Checkpoint.open(folder).config
    plain = {
        "frequency": [(values > 0).double().mean(0) for values in after],
        "mean": [values.abs().mean(0) for values in into],
        "maximum": [values.abs().amax(0) for values in into],
    }
    for measure, by_layer in plain.items():
        found = ours(folder, measure)  # type: ignore[arg-type]
        for name, scores in found.items():
            layer = place(Checkpoint.open(folder).tensors[name], config).layer
            assert layer is not None
            np.testing.assert_allclose(
                scores, spread(folder, name, by_layer[layer]), rtol=2e-4, atol=1e-6, err_msg=name
            )
    spikes = ours(folder, "spike")
    assert len(spikes) == 2
    for (name, scores), inputs, outputs in zip(sorted(spikes.items()), into, out, strict=True):
        products = torch.outer(outputs.abs().amax(0), inputs.abs().amax(0))
        expected = products.T if family == "gpt2" else products  # whose matrices are stored as (inputs, outputs)
        np.testing.assert_allclose(scores, expected.numpy(), rtol=2e-4, err_msg=name)


Figures = dict[str, tuple[torch.Tensor, torch.Tensor]]


def of_experts(folder: Path) -> Figures:
    """By the prefix of each expert's names: how often each of its gates is open, and what it gives at most."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").double().eval()
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for number, layer in enumerate(model.model.layers):
        layer.mlp.experts.register_forward_pre_hook(
            lambda m, given, n=number: seen.__setitem__(n, (given[0].flatten(0, -2), given[1]))
        )
    with torch.no_grad():
        model(torch.tensor(rows_of(folder)))
    result: Figures = {}
    for number, (x, routed) in seen.items():
        experts = model.model.layers[number].mlp.experts
        for expert in range(4):
            mine = x[(routed == expert).any(-1)]
            gate, up = (mine @ experts.gate_up_proj[expert].T).detach().chunk(2, -1)
            given = (torch.nn.functional.silu(gate) * up).abs()
            nothing = torch.zeros(16)
            result[f"model.layers.{number}.mlp.experts.{expert}."] = (
                ((gate > 0).double().mean(0), given.amax(0)) if len(mine) else (nothing, nothing)
            )
    return result


def test_of_an_expert_only_the_tokens_count_that_it_is_sent(make_model: ModelMaker) -> None:
    folder = make_model("qwen3_moe")
    frequency, maximum = ours(folder, "frequency"), ours(folder, "maximum")
    for prefix, (open_share, largest) in of_experts(folder).items():
        name = f"{prefix}down_proj.weight"
        np.testing.assert_allclose(frequency[name][0], open_share.numpy(), atol=1e-6, err_msg=name)
        np.testing.assert_allclose(maximum[name][0], largest.numpy(), rtol=2e-4, atol=1e-6, err_msg=name)


def test_the_experts_that_give_most_are_selected_whole(make_model: ModelMaker, tmp_path: Path) -> None:
    folder = make_model("qwen3_moe")
    text = tmp_path / "de.txt"
    text.write_text("".join(f"{TEXT}\n{TEXT}\n" for _ in range(2)))
    recipe = write_recipe(
        tmp_path, folder, {"de": str(text), "fr": str(text)},
        "  loud: {score: {kind: activation, measure: maximum, languages: [de], samples: 6, sequence_length: 32}, "
        "select: {count: 3, unit: expert, by: maximum, scope: global}}",
    )  # fmt: skip
    region = regions_of(recipe)["loud"]
    whole = {name.rpartition("experts.")[0] + name.split(".")[5] for name in region if region.indices(name).size}
    assert region.entries == 3 * 3 * 16 * 32
    assert all(region[name].entries in (0, 16 * 32) for name in region)
    loudest = sorted(of_experts(folder).items(), key=lambda item: -float(item[1][1].max()))[:3]
    assert whole == {prefix.rpartition("experts.")[0] + prefix.split(".")[5] for prefix, _ in loudest}


def test_counts_do_not_depend_on_the_batch(make_model: ModelMaker) -> None:
    folder = make_model("llama")
    one, all_at_once = (ours(folder, "frequency", batch) for batch in (1, 6))
    assert all(
        np.abs(one[name] - all_at_once[name]).max() < 1 / 191 for name in one
    )  # a sign of nearly nothing may turn


def test_a_broken_model_is_said_to_be_broken(make_model: ModelMaker, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder := make_model("llama"))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.fill_(float("inf"))
    model.save_pretrained(tmp_path / "model")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "model")
    with pytest.raises(
        InputError, match=r"activations at tensor 'model.layers.1.mlp.* not finite: the model is broken"
    ):
        ours(tmp_path / "model", "mean")
