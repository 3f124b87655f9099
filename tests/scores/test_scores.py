"""Scores and regions against a plain, slow reimplementation: autograd on the whole model, torch.topk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import FAMILIES, ModelMaker
from safetensors.torch import load_file

import surgeon
from surgeon.anatomy.scope import scope
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.store import cache_folder
from surgeon.errors import InputError
from surgeon.model.layer_stack import make_stack
from surgeon.model.model import load_model
from surgeon.progress import Progress
from surgeon.region.region import Region
from surgeon.scores.grad_param import GradParam
from surgeon.scores.score_pass import ScorePass
from surgeon.text.windows import Tokens, beginning, scoring_sequences, tokenize

SOME_FAMILIES = ("llama", "gpt2", "qwen2", "qwen3_moe")
TEXT = "Alle Menschen sind frei und gleich an Würde und Rechten geboren. " * 4


def plain_scores(
    folder: Path, text: str, samples: int, length: int, batch: int, reduction: str, begun: int = 0
) -> dict[str, torch.Tensor]:
    """The definition, with nothing clever: whole-model autograd in float64, named as transformers saves it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    # XGLM's attention overflows in float64: its mask is the smallest number of the dtype.
    model = model.eval() if model.config.model_type == "xglm" else model.double().eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    begin = ids[:begun]
    ids, length = ids[begun:], length - begun
    rows = [begin + ids[i : i + length] for i in range(0, len(ids) - length + 1, length)][:samples]
    first = max(begun, 1)  # the first token that is predicted
    total = len(rows) * (begun + length - first)
    scores: dict[str, torch.Tensor] = {}
    for start in range(0, len(rows), batch):
        model.zero_grad()
        x = torch.tensor(rows[start : start + batch])
        log_probabilities = model(x).logits[:, first - 1 : -1].log_softmax(-1)
        loss = -log_probabilities.gather(-1, x[:, first:, None]).sum() / total
        loss.backward()
        for name, parameter in model.named_parameters():
            product = parameter.detach() * parameter.grad
            scores[name] = scores.get(name, 0) + (product.abs() if reduction == "absolute" else product)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(scores[name].abs())
    with tempfile.TemporaryDirectory() as saved:  # transformers itself takes fused experts apart again
        model.save_pretrained(saved)
        return load_file(Path(saved) / "model.safetensors")


def our_scores(folder: Path, batch: int, reduction: str, precision: str = "float32") -> dict[str, np.ndarray]:
    checkpoint = Checkpoint.open(folder)
    score = GradParam.model_validate(
        {"kind": "grad_param", "languages": ["de"], "batch_size": batch, "reduction": reduction}
    )
    stack = make_stack(load_model(checkpoint, precision))  # type: ignore[arg-type]
    begin = beginning(stack.loaded.tokenizer)
    sequences = scoring_sequences(tokenize(stack.loaded.tokenizer, TEXT), begin, 6, 32)
    assert len(sequences) == 6
    sweep = ScorePass(stack, {"de": sequences}, scope(checkpoint).tensors, score, Progress(), begun=len(begin))
    found: dict[str, np.ndarray] = {}
    with sweep.scratch("test") as scratch:
        for _, _, scores in sweep.run(scratch, scratch.progress()):
            found |= {name: np.array(values) for name, values in scores.items()}
    return found


@pytest.mark.parametrize("reduction", ["signed", "absolute"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_definition(family: str, reduction: str, make_model: ModelMaker) -> None:
    folder = make_model(family)
    expected = plain_scores(folder, TEXT, 6, 32, 4, reduction)
    found = our_scores(folder, 4, reduction)
    layers = {name for name in expected if any(part in name for part in (".layers.", ".h."))}
    assert set(found) == layers
    for name, scores in found.items():
        np.testing.assert_allclose(scores, expected[name].numpy(), rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "xglm"])  # one runs layer by layer, one is held whole
def test_special_tokens_begin_every_sequence_and_are_not_predicted(family: str, make_model: ModelMaker) -> None:
    folder = make_model(family, bos=True, template="</s> <s> $A")
    expected, found = plain_scores(folder, TEXT, 6, 32, 4, "signed", begun=2), our_scores(folder, 4, "signed")
    for name, scores in found.items():
        np.testing.assert_allclose(scores, expected[name].numpy(), rtol=2e-3, atol=1e-7)


def test_signed_scores_do_not_depend_on_the_batch_and_absolute_ones_do(llama: Path) -> None:
    def difference(reduction: str) -> float:
        one, three = (our_scores(llama, b, reduction) for b in (1, 3))
        return max(float(np.abs(one[n] - three[n]).max() / one[n].max()) for n in one)

    assert difference("signed") < 1e-4
    assert difference("absolute") > 1e-2


def test_native_bfloat16_accumulates_in_float32(make_model: ModelMaker) -> None:
    folder = make_model("llama", dtype="bfloat16")
    wide = our_scores(folder, 2, "signed")
    native = our_scores(folder, 2, "signed", "native")
    for name in wide:
        assert native[name].dtype == np.float32
        assert np.corrcoef(wide[name].ravel(), native[name].ravel())[0, 1] > 0.97


def test_a_broken_model_is_refused(make_model: ModelMaker) -> None:
    from safetensors.torch import save_file

    folder = make_model("llama", seed=9)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="broken before any surgery"):
        our_scores(folder, 2, "signed")
    assert [path for path in (cache_folder() / "scratch").iterdir() if path.is_file()] == []  # nothing half written


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_regions_are_topk_of_the_definition(
    family: str, make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    """Core (sum over languages, top k), bottom, and monolingual, entry by entry from recipe to region file."""
    folder = make_model(family)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"""\
version: 1
name: r
model: {folder}
corpus: {{de: {texts["de"]}, fr: {texts["fr"]}}}
regions:
  core:
    score: {{kind: grad_param, languages: [de, fr], samples: 5, sequence_length: 24, batch_size: 2}}
    select: {{top: 0.03}}
  bottom: {{from: core, select: {{bottom: 0.03}}}}
  german: {{from: core, select: {{top: 0.05, monolingual: de}}}}
output: {tmp_path / "out"}
""")
    surgeon.score(recipe)
    corpus = surgeon.plan_recipe(recipe).corpus
    plain = {
        language: plain_scores(folder, corpus.text(language).score, 5, 24, 2, "signed") for language in ("de", "fr")
    }

    def load(name: str) -> Region:
        return Region.load(tmp_path / "out" / "regions" / f"{name}.region.safetensors")

    for name in load("core"):
        total = (plain["de"][name] + plain["fr"][name]).flatten()
        assert_same_but_ties(load("core").indices(name), total, int(0.03 * total.numel()))
        assert_same_but_ties(load("bottom").indices(name), -total, int(0.03 * total.numel()))
        k = int(0.05 * total.numel())
        top = {language: set(scores[name].flatten().topk(k).indices.tolist()) for language, scores in plain.items()}
        german, expected = set(load("german").indices(name).tolist()), top["de"] - top["fr"]
        assert len(german ^ expected) <= 0.02 * k + 1


def assert_same_but_ties(found: np.ndarray, scores: torch.Tensor, k: int) -> None:
    """The k highest entries; where float32 and float64 disagree, the scores must be equal to float32 precision."""
    assert found.size == k
    if k == 0:
        return
    expected = set(scores.topk(k).indices.tolist())
    threshold = float(scores.topk(k).values[-1])
    for index in set(found.tolist()) ^ expected:
        assert abs(float(scores[index]) - threshold) <= 1e-4 * abs(threshold) + 1e-9
    if abs(threshold) > 1e-7:  # entries without any effect, such as key biases, tie at zero up to noise
        assert len(set(found.tolist()) ^ expected) <= max(2, 0.02 * k)


def test_sequences_are_cut_one_after_the_other() -> None:
    tokens = Tokens(tuple(range(10)), tuple(range(1, 11)))
    assert scoring_sequences(tokens, (), 9, 4) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert scoring_sequences(tokens, (99,), 2, 4) == [(99, 0, 1, 2), (99, 3, 4, 5)]
    assert scoring_sequences(tokens, (), 9, 64) == [tuple(range(10))]
    eleven = Tokens(tuple(range(11)), tuple(range(1, 12)))  # one token short of a third sequence
    assert scoring_sequences(eleven, (), 9, 4) == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_two_languages_with_the_same_text_are_scored_once(
    recipe: Callable[..., Path], texts: dict[str, str], tmp_path: Path
) -> None:
    """And each counts: the sum over both is twice that of one, which selects the same entries."""
    twice = surgeon.score(recipe(**{f"fr: {texts['fr']}": f"fr: {texts['de']}"}), output=tmp_path / "twice")
    once = surgeon.score(recipe(**{"languages: [de, fr]": "languages: [de]"}), output=tmp_path / "once")
    assert Region.load(twice["core"]).digest() == Region.load(once["core"]).digest()
