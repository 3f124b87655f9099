"""Cuts in parts: each beside a plain transformers model in which the entries of that part alone are zero."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

import surgeon
from surgeon.checkpoint.naming import Place
from surgeon.measure.parts import parts_of
from surgeon.measure.perplexity import evaluation_texts
from surgeon.plan.planning import plan_recipe
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region
from surgeon.report.parts import part_lines
from surgeon.text.corpora import Corpus, FileLocation


def _layer(name: str) -> str:
    found = re.search(r"layers\.(\d+)\.", name)
    return found[1] if found else _role(name)


def _role(name: str) -> str:
    known = {"embed_tokens": "embed", "lm_head": "head", "model.norm": "final_norm", "layernorm": "norm"}
    known |= {f"{letter}_proj": f"attn.{letter}" for letter in "qkvo"}
    known |= {f"{letter}_proj": f"mlp.{letter}" for letter in ("gate", "up", "down")}
    return next(role for key, role in known.items() if key in name)


def _log_perplexity(model: torch.nn.Module, windows: dict[str, list[tuple[list[int], list[int]]]]) -> float:
    """The mean over languages of nats per token, window by window."""
    means = []
    for of_language in windows.values():
        nats = [
            -model(torch.tensor([ids])).logits[0, -len(labels) :].double().log_softmax(-1)[range(len(labels)), labels]
            for ids, labels in of_language
        ]
        means.append(float(torch.cat(nats).mean()))
    return math.fsum(means) / len(means)


def test_each_part_is_the_cut_in_that_layer_or_role_alone(
    recipe: Callable[..., Path], llama: Path, texts: dict[str, str], tmp_path: Path
) -> None:
    """The region reaches all that is in no layer, too; the parts share no entry, and miss none."""
    everywhere = "include: [embed, head, final_norm, norm, attn, mlp]"
    path = recipe(**{
        "  core:\n    score: {kind: grad_param, languages: [de, fr], samples: 4, sequence_length: 32}\n"
        "    select: {top: 0.05}\n": f"  core: {{score: {{kind: magnitude}}, select: {{top: 0.2}}, {everywhere}}}\n",
        "verify:\n": "verify:\n  by: [role, layer]\n", "{zero: core}]": "{zero: core}], write: false",
        "  control: {operations: [{zero: bottom}], write: false}\n": "",
    })  # fmt: skip
    planned = plan_recipe(path)
    report = surgeon.apply(path)
    region = Region.load(tmp_path / "out/regions/core.region.safetensors")
    spec = VerifySpec.model_validate({"tokens": 64, "window": 32})
    corpus = Corpus("c", {code: FileLocation(Path(text)) for code, text in texts.items()})
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    windows = {
        code: [(list(window.inputs), list(window.labels)) for window in found.windows]
        for code, found in evaluation_texts(tokenizer, corpus, list(texts), spec).items()
    }
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.no_grad():
        base = _log_perplexity(model, windows)
        for by, told in (("layer", _layer), ("role", _role)):
            found = report.parts["cut"][by]
            assert set(found.parts) == set(map(told, region))
            assert sum(part.entries for part in found.parts.values()) == region.entries
            for label, part in found.parts.items():
                inside = {name: torch.from_numpy(region.mask(name)) for name in region if told(name) == label}
                before = {name: model.get_parameter(name).clone() for name in inside}
                for name, mask in inside.items():
                    model.get_parameter(name)[mask] = 0
                assert part.entries == sum(int(mask.sum()) for mask in inside.values())
                assert part.nats == pytest.approx(_log_perplexity(model, windows) - base, abs=2e-5)
                for name, values in before.items():
                    model.get_parameter(name).copy_(values)
            assert found.sum_nats == pytest.approx(sum(part.nats for part in found.parts.values()))
            assert found.sum_low is not None
            assert found.sum_high is not None
            assert found.sum_low <= found.sum_nats <= found.sum_high
            assert math.exp(found.whole_nats) == pytest.approx(report.summary["cut"].ratio_to_base)
    assert list(report.parts["cut"]["layer"].parts) == ["0", "1", "embed", "head", "final_norm"]
    assert set(report.perplexity) == {"base", "cut"}  # parts are no variants
    assert len(planned.parts()) == sum(len(one.parts) for of in report.parts.values() for one in of.values())
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert all(line.split(":")[0] in page for line in part_lines(report))
    assert page.count('data-figure="parts-') == 2


def test_what_trainers_must_keep_is_no_part_of_a_cut(recipe: Callable[..., Path]) -> None:
    path = recipe(**{
        "{kind: grad_param, languages: [de, fr], samples: 4, sequence_length: 32}": "{kind: magnitude}",
        "{zero: core}]": "{zero: core}], freeze: bottom", "verify:\n": "verify:\n  by: [layer]\n",
        "  control: {operations: [{zero: bottom}], write: false}\n": "",
    })  # fmt: skip
    report = surgeon.apply(path)
    parts = report.parts["cut"]["layer"].parts
    assert sum(part.entries for part in parts.values()) == report.variants["cut"].entries


def test_stored_copies_of_a_tied_weight_are_in_one_part_and_one_part_is_none() -> None:
    places = {"e": Place(None, "embed", 0), "h": Place(None, "head", 0), "q": Place(0, "attn.q", 0)}
    region = Region.from_indices({"e": [1, 2], "h": [2, 3], "q": [0]}, {"e": (4,), "h": (4,), "q": (4,), "k": (4,)})
    parts = parts_of("cut", {"r": region}, ["layer"], places, [["e", "h"]])
    assert [(part.name, part.entries([["e", "h"]])) for part in parts] == [("cut/layer/0", 1), ("cut/layer/embed", 3)]
    assert parts_of("cut", {"r": region.only(["q"])}, ["layer", "role"], places, []) == []
