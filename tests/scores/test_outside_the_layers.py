"""Scores of embeddings and heads, tied and not, beside autograd on the whole model; towers that no text passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import Place
from surgeon.errors import RecipeError

RECIPE = """\
version: 1
name: test
model: {model}
corpus: {{de: {text}}}
regions:
  some:
    score: {{kind: grad_param, languages: [de], samples: 2, sequence_length: 16}}
    select: {{top: 0.05}}
    include: {include}
output: {out}
"""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize(
    ("tied", "include", "name"), [(False, "[embed]", EMBEDDING), (False, "[head]", HEAD), (True, "[embed]", EMBEDDING)]
)
def test_embedding_and_head_are_scored_by_their_own_gradients(
    tied: bool, include: str, name: str, make_model: Callable[..., Path], tmp_path: Path, texts: dict[str, str]
) -> None:
    folder, recipe = make_model("llama", tie_word_embeddings=tied), tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=folder, text=texts["de"], include=include, out=tmp_path / "out"))
    surgeon.score(recipe)
    region = surgeon.Region.load(tmp_path / "out/regions/some.region.safetensors")
    assert set(region) == {name}

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lines = [line for line in Path(texts["de"]).read_text("utf-8").splitlines() if line.strip()]
    ids = tokenizer("\n".join(lines[::2]) + "\n", add_special_tokens=False)["input_ids"]
    rows = torch.tensor([ids[:16], ids[16:32]])
    model(input_ids=rows, labels=rows).loss.backward()
    parameter = dict(model.named_parameters())[name]
    score = (parameter.detach() * parameter.grad).abs().flatten()
    order = torch.sort(score, descending=True, stable=True).indices[: int(0.05 * score.numel())]
    assert len(np.intersect1d(region.indices(name), order.numpy())) >= 0.999 * len(order)


def test_a_tower_that_no_text_passes_is_refused_at_the_plan(
    make_model: Callable[..., Path], tmp_path: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgeon.anatomy import anatomy

    folder, recipe = make_model("llama"), tmp_path / "recipe.yaml"
    places = dict(anatomy.anatomy_of(Checkpoint.open(folder)).places)
    places[EMBEDDING] = Place(None, "vision", 0)
    monkeypatch.setattr(anatomy, "_read", lambda checkpoint, key: anatomy.Anatomy(places))
    monkeypatch.setattr(anatomy, "_known", {})
    recipe.write_text(RECIPE.format(model=folder, text=texts["de"], include="[vision]", out=tmp_path / "out"))
    with pytest.raises(RecipeError, match=r"tower \(vision\) that no text passes.*use a score of weights"):
        surgeon.plan_recipe(recipe)
    recipe.write_text(recipe.read_text().replace("kind: grad_param, languages: [de], samples: 2, sequence_length: 16",
                                                 "kind: magnitude"))  # fmt: skip
    assert [info.name for info in surgeon.plan_recipe(recipe).regions["some"].tensors] == [EMBEDDING]
