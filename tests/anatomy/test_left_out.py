"""What a run does not reach is told, and only that: other towers, and what of a scope a region cannot take."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from conftest import byte_tokenizer, tiny_config
from rich.console import Console
from safetensors import safe_open

import surgeon
from surgeon.plan.summary import summarize
from surgeon.views.inspection import look_at
from surgeon.views.planned import plan_view

VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4, "projection_dim": 16, "vocab_size": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that sees."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION), text_config=tiny_config("llama", vocab_size=300),
        image_token_index=299, vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("llava") / "model"
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def recipe(folder: Path, model: Path, region: str, rest: str = "") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"""\
version: 1
name: test
model: {model}
regions:
  some: {region}
variants: {{cut: {{operations: [{{zero: some}}]}}}}
output: {folder / "out"}
{rest}
""")
    return path


def shown(path: Path) -> str:
    console = Console(width=300, file=io.StringIO())
    console.print(plan_view(summarize(surgeon.plan_recipe(path))))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def of_vision(model: Path) -> set[str]:
    with safe_open(model / "model.safetensors", "np") as file:
        return {name for name in file.keys() if "vision_tower" in name or "projector" in name}  # noqa: SIM118


def test_a_model_that_sees_is_said_to_be_run_on_text_alone(llava: Path, texts: dict[str, str], tmp_path: Path) -> None:
    score = "{kind: grad_param, languages: [de], samples: 1, sequence_length: 16}"
    rest = f"corpus: {{de: {texts['de']}}}\nverify: {{tokens: 16, window: 16}}"
    path = recipe(tmp_path, llava, f"{{score: {score}, select: {{top: 0.1}}}}", rest)
    count = f"{len(of_vision(llava))} tensors"
    report = surgeon.apply(path)
    alone = "also takes images. Scores and figures are about text alone, not about images"
    card = (tmp_path / "out/variants/cut/README.md").read_text("utf-8")
    page = (tmp_path / "out/report.html").read_text("utf-8")
    for told in (shown(path), card, page):
        assert alone in told
        assert count in told
        assert "of another tower (vision)" in told
    assert report.model.senses == ["vision"]
    assert [line.startswith(count) for line in report.model.left_out] == [True]
    assert look_at(str(llava))["left_out"] == report.model.left_out


def test_what_a_region_takes_all_the_same_is_not_said_to_be_left(llava: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, llava, "{score: {kind: magnitude}, select: {top: 0.5}, include: ['*vision_tower*weight']}")
    taken = {info.name for info in surgeon.plan_recipe(path).regions["some"].tensors}
    assert taken < of_vision(llava)
    rest = f"{len(of_vision(llava) - taken)} tensors"
    surgeon.apply(path)
    card = (tmp_path / "out/variants/cut/README.md").read_text("utf-8")
    said = json.loads((tmp_path / "out/report.json").read_text("utf-8"))["model"]["left_out"]
    assert [line.startswith(rest) for line in said] == [True]
    assert rest in card
    assert rest in shown(path)
    assert "text alone" not in card  # since no text was run


@pytest.mark.parametrize(
    ("region", "lost", "why"),
    [
        ("{score: {kind: magnitude}, select: {top: 0.5, unit: head}}", "norm mlp", "no head has a part there"),
        ("{score: {kind: magnitude}, select: {top: 0.5, unit: neuron}}", "norm attn", "no neuron has a part there"),
        ("{score: {kind: wanda, languages: [de], samples: 1}, select: {top: 0.5}}", "norm", "the matrices of linear"),
        ("{score: {kind: magnitude}, select: {top: 0.5, unit: row}}", "", ""),
    ],
)  # fmt: skip
def test_a_region_tells_what_of_its_scope_it_cannot_take(
    llama: Path, texts: dict[str, str], tmp_path: Path, region: str, lost: str, why: str
) -> None:
    path = recipe(tmp_path, llama, region, f"corpus: {{de: {texts['de']}}}")
    plan = surgeon.plan_recipe(path)
    with safe_open(llama / "model.safetensors", "np") as file:
        layers = [name for name in file.keys() if ".layers." in name]  # noqa: SIM118
    missing = [name for name in layers if any(word in name for word in lost.split())]
    assert {info.name for info in plan.regions["some"].tensors} == set(layers) - set(missing)
    said = summarize(plan).regions["some"].leaves_out
    assert len(said) == bool(lost)
    for line in said:
        assert line.startswith(f"{len(missing)} tensors (")
        assert why in line
        assert f"region 'some' leaves out {line}" in shown(path)
