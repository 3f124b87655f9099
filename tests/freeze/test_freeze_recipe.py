"""`freeze: REGION` in a recipe, and the documented format: a stranger's loader reads what surgeon writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from freezing import compare, saved_state
from typer.testing import CliRunner

import surgeon
from surgeon.api import plan_recipe
from surgeon.cli import app
from surgeon.errors import FreezeError, RecipeError
from surgeon.freeze import Bundle, freeze, verify_saved

ROOT = Path(__file__).parents[2]
NO_VERIFY = "verify:\n  tokens: 64\n  window: 32\n"


@pytest.fixture
def frozen(recipe: Callable[..., Path], tmp_path: Path) -> Path:
    """A run that writes one variant that is only frozen, and one that is cut and then frozen."""
    variants = "  control: {operations: [{zero: bottom}], write: false}\n"
    added = "  frozen: {freeze: core}\n  cut-frozen: {operations: [{zero: random}], freeze: core}\n"
    surgeon.apply(recipe(**{variants: variants + added, NO_VERIFY: ""}), jobs=1)
    return tmp_path / "out" / "variants"


def test_a_frozen_variant_is_the_source_and_a_bundle(frozen: Path, llama: Path) -> None:
    bundle = Bundle.load(frozen / "frozen")
    assert (frozen / "frozen" / "model.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()
    assert bundle.region == surgeon.Region.load(frozen.parent / "regions" / "core.region.safetensors")
    assert bundle.base is not None
    assert bundle.base["name"] == llama.name
    assert verify_saved(frozen / "frozen", bundle) == bundle.region.entries
    assert "freeze/" in (frozen / "frozen" / "README.md").read_text()
    assert "byte for byte" in (frozen / "frozen" / "README.md").read_text()
    assert not (frozen / "cut" / "freeze").exists()
    assert "freeze core" in surgeon.Report.load(frozen.parent / "report.json").variants["frozen"].operations


def test_a_variant_that_is_cut_and_frozen_keeps_what_the_cut_left(frozen: Path, llama: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(frozen / "cut-frozen")
    with pytest.raises(FreezeError, match="not those of"):
        freeze(transformers.AutoModelForCausalLM.from_pretrained(llama), frozen / "cut-frozen")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    freeze(model, frozen / "cut-frozen", optimizer)
    tokens = torch.arange(32).reshape(2, 16)
    for _ in range(2):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    inside, outside = compare(frozen / "cut-frozen", model.state_dict())
    assert inside == 0 < outside


def test_reversion_as_the_page_on_freezing_has_it(
    frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free training moves the region, as `surgeon diff` says; the page's recipe and `Frozen.restore` undo it alike."""
    page = (ROOT / "docs" / "freezing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "reverted.yaml").write_text(
        next(block for block in blocks if "restore" in block).replace(
            "out/freeze-core/variants/core-frozen", str(frozen / "frozen")
        )
    )
    monkeypatch.chdir(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(frozen / "frozen", dtype=torch.float32)
    kept = freeze(model, frozen / "frozen")
    kept.remove()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.arange(32).reshape(2, 16)
    for _ in range(2):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.save_pretrained("checkpoint-500")
    entries = Bundle.load(frozen / "frozen").region.entries
    assert changed_inside(frozen / "frozen", "checkpoint-500") > 0.9 * entries
    done = CliRunner().invoke(app, ["apply", "reverted.yaml", "--jobs", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert changed_inside(frozen / "frozen", "out/reverted/variants/reverted") == 0
    assert kept.restore() == entries
    assert compare(Path("out/reverted/variants/reverted"), model.state_dict(), kept.bundle.region) == (0, 0)


def changed_inside(base: Path, trained: str) -> int:
    """What the command line counts inside the bundle's region."""
    arguments = ["diff", str(base), trained, "--region", str(base / "freeze" / "region.safetensors"), "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    (inside,) = json.loads(done.stdout)["regions"].values()
    assert inside["inside"]["entries"] == Bundle.load(base).region.entries
    return int(inside["inside"]["changed"])


def test_a_bundle_is_not_handed_on_to_variants_of_the_variant(
    frozen: Path, recipe: Callable[..., Path], tmp_path: Path, llama: Path
) -> None:
    again = recipe(**{f"model: {llama}": f"model: {frozen / 'frozen'}", NO_VERIFY: ""})
    surgeon.apply(again, output=tmp_path / "again", jobs=1)
    assert not (tmp_path / "again" / "variants" / "cut" / "freeze").exists()


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("{freeze: cor}", "no region 'cor'; did you mean 'core'?"),
        ("{}", "does nothing: give it"),
        ("{operations: []}", "does nothing: give it"),
        ("{freeze: core, write: false}", "does not go with `write: false`"),
    ],
)
def test_recipes_that_cannot_freeze(recipe: Callable[..., Path], variant: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        plan_recipe(recipe(**{"{operations: [{zero: core}]}": variant}))


def test_the_loader_of_the_documentation(frozen: Path) -> None:
    """docs/freeze-format.md promises a loader in twenty lines; here it freezes a model."""
    text = (ROOT / "docs" / "freeze-format.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 20
    assert "surgeon" not in re.sub(r"surgeon-(freeze|region)", "", code[1])
    names: dict = {}
    exec(code[1], names)
    model = transformers.AutoModelForCausalLM.from_pretrained(frozen / "frozen")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    names["freeze"](model, frozen / "frozen", optimizer)
    tokens = torch.arange(32).reshape(2, 16)
    for _ in range(2):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    inside, outside = compare(frozen / "frozen", model.state_dict())
    assert inside == 0 < outside
    assert saved_state(frozen / "frozen").keys() == model.state_dict().keys()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.add_(1)
    with pytest.raises(AssertionError, match="down_proj"):
        names["freeze"](model, frozen / "frozen", optimizer)
