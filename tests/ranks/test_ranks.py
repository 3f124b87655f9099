"""One recipe on one, two, three and four ranks: the same bytes, whatever is spread over them."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path
from typing import Any

import jobs
import pytest
from conftest import ModelMaker, with_pictures
from launching import run_ranks

import surgeon
from surgeon.api import plan_recipe
from surgeon.plan.elsewhere import rank_needs

pytestmark = pytest.mark.slow

RECIPE = """\
version: 1
name: r
model: {model}
corpus: {{de: {de}, fr: {fr}, en: {en}}}
regions:
  core:
    score: {{kind: {kind}, languages: [de, fr, en], samples: 5, sequence_length: 24, batch_size: 2{more}}}
    select: {{top: 0.03}}
  german: {{from: core, select: {{top: 0.05, monolingual: de}}}}
  by-layer: {{from: core, select: {{bottom: 0.02, scope: layer}}}}
  low: {{control: {{of: core, draw: bottom}}}}
{regions}
variants:
  cut: {{operations: [{{zero: core}}]}}
  louder: {{operations: [{{scale: german, by: 1.5}}, {{zero: low}}], write: false}}
verify: {{tokens: 40, window: 16, batch_size: 1{verify}}}
output: out
"""
EVERYWHERE = "  everywhere: {from: core, select: {top: 0.02, scope: global}}\n"
HEAD = "  head: {from: core, select: {top: 0.05}, include: [embed, head, final_norm]}\n"
NEURONS = """\
  neurons:
    score: {kind: activation, measure: mean, languages: [de, fr], samples: 5, sequence_length: 24, batch_size: 2}
    select: {top: 0.3, unit: neuron, scope: layer, specific: de}
"""


def write_recipe(
    folder: Path,
    model: Path | str,
    texts: dict[str, str],
    kind: str = "grad_param",
    regions: str = "",
    more: str = "",
    verify: str = "",
) -> Path:
    english = folder / "en.txt"
    english.write_text("\n".join(f"{i}. All human beings are born free and equal in dignity." for i in range(12)))
    path = folder / "recipe.yaml"
    text = RECIPE.format(model=model, en=english, kind=kind, regions=regions, more=more, verify=verify, **texts)
    path.write_text(text, encoding="utf-8")
    return path


def found(out: Path) -> dict[str, Any]:
    """Everything that a run gives which must not depend on how many ranks there were."""
    report = json.loads((out / "report.json").read_text())
    files = [*(out / "regions").iterdir(), *(path for path in (out / "variants" / "cut").glob("*.safetensors*"))]
    result: dict[str, Any] = {str(path.relative_to(out)): path.read_bytes() for path in files}
    return result | {key: report[key] for key in ("perplexity", "regions", "scores", "generations", "summary")}


def same_on_all(folder: Path, recipe: Path, counts: tuple[int, ...], share: float = 0.0) -> dict[str, Any]:
    results, plan = {}, plan_recipe(recipe)
    for count in counts:
        own, out = {"SURGEON_CACHE": str(with_pictures(folder / f"cache{count}"))}, folder / f"out{count}"
        ended = run_ranks(count, jobs.apply, str(recipe), str(out), share, folder=folder, environment=own)
        sent = [re.findall(r"sent: (\d+) of (\d+)", rank.said)[0] for rank in ended]
        assert max(int(sums) for sums, _ in sent) <= rank_needs(plan, count).sent
        assert any(int(every) for _, every in sent) == (count > 1)
        results[count] = found(folder / f"out{count}")
    first = results[counts[0]]
    assert len(first) > 8
    for count, result in results.items():
        assert result.keys() == first.keys()
        assert [key for key in first if result[key] != first[key]] == [], f"{count} ranks"
    return first


def test_the_builtin_model_on_one_and_four_ranks(texts: dict[str, str], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "builtin:tiny30", texts)
    same_on_all(tmp_path, recipe, (1, 4))


def test_a_mixture_of_experts_on_one_to_four_ranks(
    make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    """Whole scores are kept, and some expert meets no token of some rank."""
    model = make_model("mixtral", dtype="bfloat16", shard="20KB")
    recipe = write_recipe(
        tmp_path, model, texts, more=", reduction: absolute", verify=", prompts: [Alle], new_tokens: 3"
    )
    same_on_all(tmp_path, recipe, (1, 2, 3, 4), share=1.0)


@pytest.mark.parametrize(
    ("kind", "family", "regions", "count"),
    [("wanda", "mixtral", EVERYWHERE + NEURONS, 3), ("grad_param", "llama", EVERYWHERE + HEAD, 2)],
)
def test_other_scores_scopes_and_what_is_outside_the_layers(
    kind: str, family: str, regions: str, count: int, make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, make_model(family, tie_word_embeddings=False), texts, kind, regions)
    same_on_all(tmp_path, recipe, (1, count))


def test_ranks_without_the_files_get_them_from_the_first(
    make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    model = make_model("mixtral", dtype="bfloat16", shard="20KB", tie_word_embeddings=True)
    recipe = write_recipe(tmp_path, model, texts)
    recipe.write_text(recipe.read_text().replace("samples: 5", "samples: 2"))  # three batches: one rank has none
    run_ranks(1, jobs.apply, str(recipe), str(tmp_path / "one"), folder=tmp_path)
    own = {"SURGEON_CACHE": str(with_pictures(tmp_path / "other")), "TMPDIR": str(tmp_path)}
    arguments = str(recipe), str(tmp_path / "two"), str(model)
    run_ranks(4, jobs.apply_unseen, *arguments, folder=tmp_path, environment=own)
    assert found(tmp_path / "one") == found(tmp_path / "two")


def test_every_rank_hears_what_verify_found(make_model: ModelMaker, texts: dict[str, str], tmp_path: Path) -> None:
    arguments = str(make_model("llama", seed=3)), str(make_model("llama")), texts
    for count in (1, 3):
        run_ranks(count, jobs.verify, *arguments, str(tmp_path / f"{count}.txt"), folder=tmp_path)
    assert "Measure(nll=" in (tmp_path / "1.txt").read_text()
    assert (tmp_path / "1.txt").read_text() == (tmp_path / "3.txt").read_text()


def test_one_process_imports_nothing_of_torch_distributed(
    make_model: ModelMaker, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other libraries import is theirs."""
    asked, real = [], builtins.__import__

    def watched(name: str, namespace: Any = None, *rest: Any, **more: Any) -> Any:
        if name.startswith("torch.distributed") and (namespace or {}).get("__name__", "").startswith("surgeon"):
            asked.append(name)
        return real(name, namespace, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", watched)
    surgeon.score(write_recipe(tmp_path, make_model("llama"), texts), output=tmp_path / "out")
    assert asked == []
