"""Magnitude, Wanda and random scores against plain reimplementations: hooks on modules, sorting, torch.topk."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import FAMILIES, ModelMaker, byte_tokenizer
from safetensors.torch import load_file

import surgeon
from surgeon.anatomy.scope import scope
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import place
from surgeon.errors import InputError, RecipeError
from surgeon.model.layer_stack import make_stack
from surgeon.model.model import load_model
from surgeon.progress import Progress
from surgeon.region.region import Region
from surgeon.scores.score_pass import ScorePass
from surgeon.scores.wanda import Wanda
from surgeon.text.windows import scoring_sequences, tokenize

TEXT = "Alle Menschen sind frei und gleich an Würde und Rechten geboren. " * 4


def plain_wanda(folder: Path, text: str, samples: int, length: int) -> dict[str, torch.Tensor]:
    """The definition by forward hooks on modules, in float64; named as transformers saves it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    model = model.eval() if model.config.model_type == "xglm" else model.double().eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    rows = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)][:samples]
    scores: dict[torch.nn.Parameter, torch.Tensor] = {}
    inputs: dict[torch.nn.Module, torch.Tensor] = {}

    def keep(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if arguments:
            inputs[module] = arguments[0].flatten(0, -2)
        if hasattr(module, "gate_up_proj") and isinstance(module.gate_up_proj, torch.nn.Parameter):
            keep_experts(module, *arguments)

    def keep_experts(module: torch.nn.Module, x: torch.Tensor, chosen: torch.Tensor, _: torch.Tensor) -> None:
        scores[module.gate_up_proj] = module.gate_up_proj.abs()
        scores[module.down_proj] = module.down_proj.abs()
        x = x.flatten(0, -2)
        for expert in range(module.gate_up_proj.shape[0]):
            mine = x[(chosen == expert).any(-1)]
            gate, up = (mine @ module.gate_up_proj[expert].T).chunk(2, -1)
            between = torch.nn.functional.silu(gate) * up
            scores[module.gate_up_proj][expert] *= mine.norm(dim=0)
            scores[module.down_proj][expert] *= between.norm(dim=0)

    for module in model.modules():
        module.register_forward_pre_hook(keep)
    with torch.no_grad():
        model(torch.tensor(rows))
        for module, x in inputs.items():
            weight = getattr(module, "weight", None)
            if weight is None or weight.dim() != 2 or isinstance(module, torch.nn.Embedding):
                continue
            conv1d = type(module).__name__ == "Conv1D"
            scores[weight] = weight.abs() * (x.norm(dim=0)[:, None] if conv1d else x.norm(dim=0))
        for parameter in model.parameters():
            parameter.copy_(scores.get(parameter, torch.tensor(torch.nan)))
    with tempfile.TemporaryDirectory() as saved:  # transformers itself takes fused experts apart again
        model.save_pretrained(saved)
        return load_file(Path(saved) / "model.safetensors")


def our_wanda(folder: Path, batch: int = 6) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint.open(folder)
    tensors = [info for info in scope(checkpoint).tensors if len(info.shape) > 1]
    stack = make_stack(load_model(checkpoint, "float32"))
    sequences = scoring_sequences(tokenize(stack.loaded.tokenizer, TEXT), (), 6, 32)
    sweep = ScorePass(
        stack, {"de": sequences}, tensors, Wanda(kind="wanda", languages=["de"], batch_size=batch), Progress()
    )
    found: dict[str, np.ndarray] = {}
    with sweep.scratch("test") as scratch:
        for _, _, scores in sweep.run(scratch, scratch.progress()):
            found |= {name: np.array(values) for name, values in scores.items()}
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_wanda_is_weight_times_norm_of_its_input(family: str, make_model: ModelMaker) -> None:
    folder = make_model(family)
    expected = plain_wanda(folder, TEXT, 6, 32)
    found = our_wanda(folder)
    assert found
    for name, scores in found.items():
        np.testing.assert_allclose(scores, expected[name].numpy(), rtol=2e-4, atol=1e-6, err_msg=name)


def test_wanda_does_not_depend_on_the_batch(make_model: ModelMaker) -> None:
    folder = make_model("qwen3_moe")
    one, all_at_once = (our_wanda(folder, batch) for batch in (1, 6))
    for name in one:
        np.testing.assert_allclose(one[name], all_at_once[name], rtol=1e-3, atol=1e-6)


def test_wanda_refuses_what_multiplies_no_input(tmp_path: Path) -> None:
    """Mamba's state matrix is a matrix, but of no linear layer."""
    config = transformers.MambaConfig(
        vocab_size=258, hidden_size=16, state_size=4, num_hidden_layers=1, time_step_rank=4
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"backbone.layers.0.mixer.A_log' has no wanda score: .*exclude it"):
        our_wanda(tmp_path / "model")


def write_recipe(folder: Path, model: Path, texts: dict[str, str], regions: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"""\
version: 1
name: r
model: {model}
corpus: {{de: {texts["de"]}, fr: {texts["fr"]}}}
regions:
{regions}
output: {folder / "out"}
""")
    return path


def regions_of(recipe: Path) -> dict[str, Region]:
    return {name: Region.load(path) for name, path in surgeon.score(recipe).items()}


WANDA = "{kind: wanda, languages: [de, fr], samples: 5, sequence_length: 24, batch_size: 2}"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_wanda_per_output_is_what_the_paper_compares(
    family: str, make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    """The best k inputs of each output, from recipe to region file; vectors have no score and stay out."""
    folder = make_model(family)
    recipe = write_recipe(tmp_path, folder, texts, f"  best: {{score: {WANDA}, select: {{top: 0.1, scope: output}}}}")
    planned = surgeon.plan_recipe(recipe)
    region = regions_of(recipe)["best"]
    assert planned.regions["best"].entries == region.entries
    plain = [plain_wanda(folder, planned.corpus.text(language).score, 5, 24) for language in ("de", "fr")]
    checkpoint = Checkpoint.open(folder)
    assert all(len(shape) > 1 for shape in region.shapes.values())
    for name in region:
        total, mask = plain[0][name] + plain[1][name], torch.from_numpy(region.mask(name))
        if place(checkpoint.tensors[name], checkpoint.config).output_axis == 1:
            total, mask = total.T, mask.T
        k = int(0.1 * total.shape[1])
        expected = torch.zeros_like(mask).scatter(1, total.topk(k, 1).indices, True)
        assert (mask.sum(1) == k).all()
        assert (mask ^ expected).sum() <= 2  # float32 here, float64 there


def test_magnitude_is_topk_of_the_weights_and_runs_no_model(
    make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    folder = make_model("llama", dtype="bfloat16", seed=21)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nobody-knows"}))
    (folder / "tokenizer.json").unlink()
    regions = regions_of(
        write_recipe(
            tmp_path, folder, texts,
            "  large: {score: {kind: magnitude}, select: {top: 0.03}}\n"
            "  small: {from: large, select: {bottom: 0.03}}\n"
            "  layer: {from: large, select: {top: 0.03, scope: layer}}",
        )
    )  # fmt: skip
    weights = {
        name: tensor.double().abs().flatten() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    for label, sign in (("large", 1), ("small", -1)):
        for name in regions[label]:
            values = sign * weights[name]
            chosen, k = regions[label].indices(name), int(0.03 * values.numel())
            order = sorted(range(values.numel()), key=lambda i: (-float(values[i]), i))
            assert chosen.tolist() == sorted(order[:k])
    for layer in ("layers.0.", "layers.1."):
        names = [name for name in regions["layer"] if layer in name]
        chosen = torch.cat([weights[name][regions["layer"].indices(name)] for name in names])
        together = torch.cat([weights[name] for name in names])
        assert torch.equal(chosen.sort().values, together.topk(int(0.03 * together.numel())).values.sort().values)


def test_random_scores_depend_on_seed_and_name_only(
    make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    spec = "  {}: {{score: {{kind: random, seed: {}}}, select: {{top: 0.05}}}}"
    whole, sharded = make_model("llama"), make_model("llama", shard="20KB")
    first = regions_of(write_recipe(tmp_path, whole, texts, f"{spec.format('a', 1)}\n{spec.format('b', 2)}"))
    again = regions_of(write_recipe(tmp_path, sharded, texts, spec.format("a", 1)))
    assert first["a"] == again["a"]
    assert first["a"].jaccard(first["b"]) < 0.1
    for name, shape in first["a"].shapes.items():
        assert first["a"].indices(name).size == int(0.05 * np.prod(shape))
    positions = np.concatenate([first["a"].indices(name) / np.prod(shape) for name, shape in first["a"].shapes.items()])
    assert abs(positions.mean() - 0.5) < 0.05


def test_what_a_score_cannot_do_is_said_with_its_line(llama: Path, texts: dict[str, str], tmp_path: Path) -> None:
    def problem(region: str) -> str:
        with pytest.raises(RecipeError) as caught:
            surgeon.plan_recipe(write_recipe(tmp_path, llama, texts, f"  a: {region}"))
        return str(caught.value).removeprefix(str(tmp_path) + "/")

    assert problem("{score: {kind: wandaa}, select: {top: 0.1}}") == (
        "recipe.yaml:6: regions.a.score: unknown kind 'wandaa'; did you mean 'wanda'?"
    )
    assert problem("{score: {languages: [de]}, select: {top: 0.1}}") == (
        "recipe.yaml:6: 'regions.a.score.kind' is missing"
    )
    assert problem("{score: {kind: wanda}, select: {top: 0.1}}") == (
        "recipe.yaml:6: 'regions.a.score.languages' is missing"
    )
    assert problem("{score: {kind: magnitude, samples: 3}, select: {top: 0.1}}").startswith(
        "recipe.yaml:6: unknown key 'samples'"
    )
    assert problem("{score: {kind: magnitude}, select: {top: 0.1, monolingual: de}}") == (
        "recipe.yaml:6: this score knows no languages: monolingual needs one on text, such as grad_param"
    )
    assert problem(f"{{score: {WANDA}, select: {{top: 0.1}}, include: [norm]}}") == (
        "recipe.yaml:6: region 'a' selects nothing: wanda scores the matrices of linear layers only"
    )
    assert "scope output goes with top or bottom" in problem("{select: {random: 0.1, scope: output}}")


def test_the_report_counts_the_text_of_each_score(recipe: Callable[..., Path]) -> None:
    wanda = (
        "  w: {score: {kind: wanda, languages: [de], samples: 2, sequence_length: 32}, select: {top: 0.1}}\nvariants:"
    )
    report = surgeon.apply(recipe(**{"variants:": wanda}))
    counted = [(item.kind, item.language, item.sequences, item.tokens) for item in report.scores]
    assert counted == [("grad_param", "de", 4, 124), ("grad_param", "fr", 4, 124), ("wanda", "de", 2, 62)]
