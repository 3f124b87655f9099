"""What cannot be found again in the model that transformers builds is refused at the plan; the remedy works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import surgeon
from surgeon.anatomy import anatomy, slots
from surgeon.errors import RecipeError

TEXT = """\
version: 1
name: test
model: {model}
corpus: {{de: {text}}}
regions:
  some: {{{region}}}
variants: {{cut: {{operations: [{{zero: some}}]}}}}
{rest}
output: {folder}/out
"""
SCORED = "score: {kind: grad_param, languages: [de], samples: 1, sequence_length: 8}, select: {top: 0.1}"
DRAWN = "select: {random: 0.1}"


def test_it_is_refused_at_the_plan_and_excluding_it_helps(
    make_model: Callable[..., Path], tmp_path: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture, recipe = make_model("qwen3_moe"), tmp_path / "recipe.yaml"
    monkeypatch.setattr(anatomy, "_known", {})
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(slots, "_slots", _without_experts(slots._slots))

    def write(region: str, rest: str = "") -> Path:
        said = TEXT.format(model=mixture, text=texts["de"], region=region, rest=rest, folder=tmp_path)
        recipe.write_text(said, encoding="utf-8")
        return recipe

    with pytest.raises(RecipeError, match=r"recipe\.yaml:6.*experts.*cannot be scored there: exclude it"):
        surgeon.plan_recipe(write(SCORED))
    with pytest.raises(RecipeError, match=r"cannot be measured there: exclude it, or leave out `verify`"):
        surgeon.plan_recipe(write(DRAWN, "verify: {tokens: 8, window: 8}"))
    assert surgeon.plan_recipe(write(DRAWN)).regions["some"].entries > 0
    report = surgeon.apply(write(SCORED + ", exclude: [experts]", "verify: {tokens: 8, window: 8}"))
    assert report.regions["some"].entries > 0


def _without_experts(found: Callable[..., dict[str, slots.Slot]]) -> Callable[..., dict[str, slots.Slot]]:
    return lambda *given: {name: slot for name, slot in found(*given).items() if ".experts." not in name}
