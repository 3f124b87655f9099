"""Where a model and a batch's activations fit, no layer runs forward twice, and the scores are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ModelMaker, with_pictures

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import InputError
from surgeon.memory import free_memory
from surgeon.model import budgets
from surgeon.model.layer_stack import Stack
from surgeon.model.workplace import Workplace
from surgeon.plan.needs import Running, peak_memory
from surgeon.progress import Progress
from surgeon.scores.grad_param import GradParam
from surgeon.scores.score_pass import ScorePass

RECIPE = """
version: 1
name: r
model: {model}
corpus: {{de: {de}, fr: {fr}}}
regions:
  core:
    score: {{kind: grad_param, languages: [de, fr], samples: 5, sequence_length: 24, batch_size: 2}}
    select: {{top: 0.03, scope: layer}}
variants:
  cut: {{operations: [{{zero: core}}], write: false}}
output: {out}
"""


@pytest.fixture
def layers_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    run, real = [], Stack.layer

    def counted(self: Stack, number: int, *rest: Any) -> Any:
        run.append(number)
        return real(self, number, *rest)

    monkeypatch.setattr(Stack, "layer", counted)
    return run


@pytest.mark.parametrize("reduction", ["signed", "absolute"])
@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_the_scores_are_those_of_the_layers_one_by_one(
    family: str, reduction: str, make_model: ModelMaker, layers_run: list[int]
) -> None:
    checkpoint = Checkpoint.open(make_model(family, dtype="bfloat16"))
    stack = Workplace("cpu", 1).load(checkpoint, "float32")
    generator = torch.Generator().manual_seed(0)
    texts = {name: torch.randint(5, 60, (5, 17), generator=generator).tolist() for name in ("de", "fr")}
    score = GradParam(kind="grad_param", languages=["de", "fr"], batch_size=2, reduction=reduction)
    tensors = [info for info in checkpoint.tensors.values() if info.name in stack.loaded.parameters]
    found: list[dict[tuple[str, str], torch.Tensor]] = []
    for in_one_go in (False, True):
        layers_run.clear()
        made: dict[tuple[str, str], torch.Tensor] = {}
        score_pass = ScorePass(stack, texts, tensors, score, Progress(), in_one_go=in_one_go)
        with score_pass.scratch("test") as scratch:
            for _, language, scores in score_pass.run(scratch, score_pass.start(scratch)):
                made |= {(language, name): torch.from_numpy(values.copy()) for name, values in scores.items()}
        found.append(made)
        batches, times = 6, 1 if in_one_go else 2
        assert len(layers_run) == times * batches * len(stack.layers)
    assert found[0].keys() == found[1].keys() == {(code, info.name) for code in texts for info in tensors}
    for key, one in found[0].items():
        torch.testing.assert_close(found[1][key], one, rtol=1e-5, atol=1e-5 * float(one.max()), msg=str(key))


@pytest.mark.parametrize("reduction", ["signed", "absolute"])
def test_where_the_device_is_full_less_is_run_at_a_time(
    reduction: str, make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum of absolute values is still one over whole batches."""
    checkpoint = Checkpoint.open(make_model("llama"))
    stack = Workplace("cpu", 1).load(checkpoint, "float32")
    texts = {"de": torch.randint(5, 60, (7, 17), generator=torch.Generator().manual_seed(0)).tolist()}
    score = GradParam(kind="grad_param", languages=["de"], batch_size=4, reduction=reduction)
    real, said = Stack.layer, []

    def full(self: Stack, number: int, hidden: torch.Tensor, *rest: Any) -> Any:
        if len(hidden) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, number, hidden, *rest)

    monkeypatch.setattr(Progress, "note", lambda self, line: said.append(line))
    found = []
    for layer in (real, full):
        monkeypatch.setattr(Stack, "layer", layer)
        score_pass = ScorePass(stack, texts, list(checkpoint.tensors.values()), score, Progress(), in_one_go=True)
        with score_pass.scratch("test") as scratch:
            made = score_pass.run(scratch, score_pass.start(scratch))
            found.append({name: torch.from_numpy(one.copy()) for _, _, of in made for name, one in of.items()})
    for name, one in found[0].items():
        torch.testing.assert_close(found[1][name], one, rtol=1e-4, atol=1e-5 * float(one.max()), msg=name)
    assert [line.partition(": ")[2] for line in said] == [
        "layer by layer, instead of all layers at once", "2 of a batch's 4 at a time", "1 of a batch's 4 at a time",
    ]  # fmt: skip


def test_a_run_goes_by_the_memory_there_is_and_finds_the_same(
    make_model: ModelMaker,
    texts: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layers_run: list[int],
) -> None:
    found, told, model = {}, {}, make_model("llama")
    for said in ("8G", "1K"):
        monkeypatch.setenv(budgets.HOST, said)
        monkeypatch.setenv("SURGEON_CACHE", str(with_pictures(tmp_path / said)))
        recipe = tmp_path / f"{said}.yaml"
        recipe.write_text(RECIPE.format(model=model, out=tmp_path / f"out{said}", **texts))
        plan = surgeon.plan_recipe(recipe)
        told[said] = peak_memory(plan)
        assert Running(plan).scores_in_one_go(plan.sampled_scores()[0]) == (said == "8G")
        layers_run.clear()
        surgeon.apply(recipe)
        found[said] = len(layers_run), (tmp_path / f"out{said}/regions/core.region.safetensors").read_bytes()
    assert found["8G"][1] == found["1K"][1]
    assert found["8G"][0] < found["1K"][0]
    assert told["8G"] >= told["1K"] > 0


def test_budgets_follow_the_machine_or_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(budgets.HOST, raising=False)
    assert 0.4 * free_memory() <= budgets.memory() <= 0.6 * free_memory()
    for said, expected in (("8G", 8_000_000_000), ("1.5 gb", 1_500_000_000), ("123", 123), ("500M", 500_000_000)):
        monkeypatch.setenv(budgets.HOST, said)
        assert budgets.memory() == expected
        assert 2 * budgets.resident_bytes() <= expected
        assert 4 * budgets.hidden_bytes() <= expected
    monkeypatch.setenv(budgets.HOST, "much")
    with pytest.raises(InputError, match="SURGEON_MEMORY=much"):
        budgets.memory()
