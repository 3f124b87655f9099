"""Some families of the survey, unlike each other: what comes out is what plain transformers and autograd give."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

SURVEY = Path(__file__).parent.parent.parent / "scripts" / "survey"

SAMPLE = [
    "jamba", "nemotron_h", "deepseek_v3, with its MTP layer", "qwen3_next, with its MTP layer", "gemma3n_text",
    "gemma4", "gpt_oss", "qwen3_vl_moe", "llava, language_model inside", "mixtral, experts stacked",
    "gpt2, as published", "llama, tied and both stored",
]  # fmt: skip


@pytest.fixture
def survey(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The survey's modules can be imported, pictures are not drawn, and nothing that libraries warn of is an error."""
    import vl_convert

    monkeypatch.syspath_prepend(SURVEY)
    monkeypatch.setenv("SURGEON_CACHE", "")  # which the survey sets
    from judge import NOT_DRAWN

    for drawing, instead in NOT_DRAWN.items():
        monkeypatch.setattr(vl_convert, drawing, instead)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for module in [
        name for name, it in sys.modules.items() if str(getattr(it, "__file__", "")).startswith(str(SURVEY))
    ]:
        del sys.modules[module]


@pytest.mark.parametrize("name", SAMPLE)
def test_a_family_is_cut_and_measured_as_plain_transformers_would(name: str, survey: None, tmp_path: Path) -> None:
    from judge import one

    found = one(name, tmp_path)
    assert (found.verdict, found.wrong, found.message) == ("right", [], "")


@pytest.mark.parametrize("name", ["t5", "bart (BartForConditionalGeneration)", "blip", "florence2"])
def test_what_cannot_be_run_on_a_text_alone_is_refused(name: str, survey: None, tmp_path: Path) -> None:
    from judge import one

    found = one(name, tmp_path)
    assert (found.verdict, found.wrong) == ("refused", [])
    assert found.message


def test_the_survey_sees_what_is_wrong(survey: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry too many, another entry, a byte outside, a figure that is off: each is told."""
    import json

    import judge
    import reference
    import torch
    from safetensors.torch import load_file, save_file

    reach = judge.command

    def spoilt(*arguments: str | Path) -> judge.Ended:
        ended = reach(*arguments)
        if arguments[0] == "apply":
            path = tmp_path / "out" / "variants" / "cut" / "model.safetensors"
            tensors = load_file(path)
            tensors["model.layers.1.mlp.down_proj.weight"][0] = 0
            tensors["lm_head.weight"][5, 5] = 0
            tensors["model.layers.0.input_layernorm.weight"][3] = 0
            save_file(tensors, path, {"format": "pt"})
            told = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
            told["perplexity"]["base"]["de"]["perplexity"] *= 1.0001
            (tmp_path / "out" / "report.json").write_text(json.dumps(told), encoding="utf-8")
        return ended

    monkeypatch.setattr(judge, "command", spoilt)
    found = judge.one("llama", tmp_path)
    assert found.verdict == "wrong"
    told = "\n".join(found.wrong)
    assert "lm_head.weight" in told
    assert "model.layers.*.input_layernorm.weight" in told
    assert "of model.layers.*.mlp.down_proj.weight instead of" in told
    assert "overlap of regions" in told
    assert "perplexity of base in de" in told
    assert reference.top(torch.tensor([1.0, 3.0, 3.0, 3.0]), 0.5).tolist() == [1, 2]  # of equal ones the first
