"""Model cards: valid on the Hub whatever the source's card holds, and true to the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from hypothesis import given
from hypothesis import strategies as st
from reports import make_report

import surgeon
from surgeon.api import plan_recipe
from surgeon.region.region import Region
from surgeon.report.card import REBUILD, SourceCard, base_model, model_card
from surgeon.report.data import Report
from surgeon.report.entries import SweepReport

RecipeMaker = Callable[..., Path]


@pytest.fixture(scope="module")
def hostile_plan(llama: Path, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A plan on a model whose card the tests write."""
    root = tmp_path_factory.mktemp("card")
    model = root / "model`|<b>\nx"
    model.mkdir()
    for path in llama.iterdir():
        (model / path.name).symlink_to(path)
    text = yaml.safe_dump(
        {
            "version": 1,
            "name": "strange",
            "model": str(model),
            "regions": {"r": {"select": {"random": 0.1}}},
            "variants": {"cut": {"operations": [{"zero": "r"}]}},
            "output": str(root / "out"),
        }
    )
    (root / "recipe.yaml").write_text(text)
    return plan_recipe(root / "recipe.yaml")


def card_after(plan, text: str | bytes) -> str:  # type: ignore[no-untyped-def]
    """The card of a variant whose source has a certain card."""
    path = plan.checkpoint.folder / "README.md"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return model_card(plan, "cut", {})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.sampled_from(["mit", "no"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
keys = st.sampled_from(
    ["license", "license_name", "license_link", "language", "pipeline_tag", "tags", "base_model", "model-index"]
)


@given(front=st.dictionaries(keys, values), body=st.text())
def test_no_source_card_breaks_the_metadata(hostile_plan, tmp_path_factory, front, body) -> None:  # type: ignore[no-untyped-def]
    source = f"---\n{yaml.safe_dump(front, allow_unicode=True)}---\n{body}"
    check(hostile_plan, tmp_path_factory.mktemp("one"), source)


@given(text=st.text() | st.binary() | st.text().map(lambda inner: f"---\n{inner}\n---\n"))
def test_no_text_at_all_breaks_the_metadata(hostile_plan, tmp_path_factory, text) -> None:  # type: ignore[no-untyped-def]
    check(hostile_plan, tmp_path_factory.mktemp("two"), text)


def check(plan, folder: Path, source: str | bytes) -> None:  # type: ignore[no-untyped-def]
    card = card_after(plan, source)
    (folder / "README.md").write_text(card, encoding="utf-8")
    data = metadata_load(folder / "README.md")
    assert data is not None
    assert data["library_name"] == "transformers"
    assert data["tags"] == ["model-surgery", "surgeon", "zero"]
    assert set(data) <= {
        "library_name", "tags", "language", "license", "license_name", "license_link", "pipeline_tag",
    }  # fmt: skip
    parsed = ModelCard(card)
    assert parsed.text.startswith("\n# strange: cut\n") or parsed.text.startswith("# strange: cut\n")
    assert "damaged on purpose" in parsed.text


def test_licence_and_languages_are_inherited(hostile_plan) -> None:  # type: ignore[no-untyped-def]
    card = card_after(
        hostile_plan,
        "---\nlanguage: [en, no, zh, 5, '../x']\nlicense: other\nlicense_name: llama3.2\n"
        "license_link: https://example.org/LICENSE\npipeline_tag: text-generation\ntags: [secret]\n"
        "extra_gated_prompt: |\n  a long text\n---\n# Source\n",
    )
    data = ModelCard(card).data.to_dict()
    assert data["language"] == ["en", "no", "zh"]  # a bare `no` is Norwegian, though YAML 1.1 reads it as false
    assert data["license"] == "other"
    assert data["license_name"] == "llama3.2"
    assert data["license_link"] == "https://example.org/LICENSE"
    assert data["pipeline_tag"] == "text-generation"
    assert "secret" not in card
    assert "a long text" not in card
    assert "- 'no'" in card  # quoted, so that every reader of YAML takes it for a word


def test_a_very_long_card_is_read_in_bounds() -> None:
    nested = "---\nlicense: mit\nx: " + "[" * 100_000 + "\n---\n"
    assert SourceCard.parse(nested) == SourceCard({})
    laughs = "a: &a [lol, lol]\n" + "".join(
        f"{chr(ord(c) + 1)}: &{chr(ord(c) + 1)} [*{c}, *{c}, *{c}, *{c}, *{c}, *{c}, *{c}, *{c}]\n"
        for c in "abcdefghij"
    )
    assert SourceCard.parse(f"---\n{laughs}language: *k\nlicense: mit\n---\n") == SourceCard({})


def test_a_card_s_bomb_of_merge_keys_is_not_set_off() -> None:
    """Half a kilobyte which a reader that merges turns into ten billion pairs; one merge alone costs nothing else."""
    rows = [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 11)]
    bomb = "\n".join(["a0: &a0 {x: y}", *rows])
    assert len(bomb) < 700
    assert SourceCard.parse(f"---\nlicense: mit\n{bomb}\n---\n") == SourceCard({})
    merged = "---\na: &a {x: y}\nb: {<<: *a}\nlicense: !!str mit\nlanguage: [no, en]\nvalue: .nan\n---\n"
    assert SourceCard.parse(merged) == SourceCard({"license": "mit"}, ("no", "en"))


def test_a_path_in_the_card_stays_text(hostile_plan) -> None:  # type: ignore[no-untyped-def]
    card = card_after(hostile_plan, "")
    line = next(line for line in card.splitlines() if line.startswith("Made from"))
    assert "↵x``" in line  # the line end is shown, the backtick is inside longer ones
    assert base_model(str(hostile_plan.checkpoint.source.path)) is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://org/name@main", "org/name"), ("org/name", "org/name"), ("builtin:tiny30", None),
        ("/home/me/model", None), ("hf://org/na me", None), ("hf://org/name/../x", None),
    ],
)  # fmt: skip
def test_the_base_model_is_a_hub_id_or_none(source: str, expected: str | None) -> None:
    assert base_model(source) == expected


def test_the_card_shows_what_was_measured(recipe: RecipeMaker, tmp_path: Path) -> None:
    report = surgeon.apply(recipe())
    folder = tmp_path / "out" / "variants" / "cut"
    card = ModelCard((folder / "README.md").read_text())
    measured = {r.dataset_config: r.metric_value for r in card.data.eval_results or ()}
    assert measured == {code: round(one.perplexity, 4) for code, one in report.perplexity["cut"].items()}
    assert {r.metric_type for r in card.data.eval_results or ()} == {"perplexity"}
    ratio = report.summary["cut"].ratio_to_base
    assert f"that is times {ratio:.2f}" in card.text or f"that is times {ratio:.3g}" in card.text
    rows = [line for line in card.text.splitlines() if line.startswith(("| German |", "| French |"))]
    assert len(rows) == 2
    region = Region.load(tmp_path / "out" / "regions" / "core.region.safetensors")
    assert f"{region.entries:,}" in card.text
    assert "the 5 % of every tensor with the highest score (grad\\_param) on German, French" in card.text
    assert f"as multiples of the perplexity before: control {report.summary['control'].ratio_to_base:.2f}" in card.text
    for name in ("perplexity", "scan"):
        assert f'srcset="figures/{name}-dark.png"' in card.text
        assert f'src="figures/{name}.png"' in card.text
    assert REBUILD in card.text
    assert (folder / "figures" / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "figures" / "perplexity.svg").read_text().startswith("<svg")
    again = surgeon.apply(recipe())
    assert again.variants["cut"].reused
    kept = Report.load(tmp_path / "out" / "report.json")  # the first run's file, since nothing changed
    assert not kept.variants["cut"].reused
    assert kept.model_copy(update={"variants": again.variants}) == again


def test_infinite_perplexities_stay_out_of_the_metadata(recipe: RecipeMaker, tmp_path: Path) -> None:
    report = surgeon.apply(recipe())
    inf = {
        code: one.model_copy(update={"perplexity": float("inf"), "log_perplexity": 800.0})
        for code, one in report.perplexity["cut"].items()
    }
    changed = report.model_copy(update={"perplexity": {**report.perplexity, "cut": inf}})
    card = model_card(plan_recipe(tmp_path / "recipe.yaml"), "cut", {}, changed)
    assert ModelCard(card).data.eval_results is None
    assert "| inf | inf |" in card


def test_a_variant_of_a_variant_inherits_no_figures(recipe: RecipeMaker, tmp_path: Path) -> None:
    surgeon.apply(recipe())
    first = tmp_path / "out" / "variants" / "cut"
    text = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    text |= {"model": str(first), "output": str(tmp_path / "second")}
    text.pop("verify")
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(text))
    surgeon.apply(tmp_path / "second.yaml")
    second = tmp_path / "second" / "variants" / "cut"
    assert not (second / "figures").exists()
    assert (second / "tokenizer.json").exists()


def test_a_draw_of_a_control_has_a_card_of_its_own(hostile_plan) -> None:  # type: ignore[no-untyped-def]
    """The card is of its weights, and not of the mean of all draws."""
    made = make_report()
    sweep = SweepReport(axes={"seed": [0, 1]}, points={"cut": [0], "broken": [1]})
    measured = {name: made.perplexity[name] for name in ("base", "cut")}
    worse = {code: item.model_copy(update={"log_perplexity": 99.0}) for code, item in measured["cut"].items()}
    report = made.model_copy(update={
        "sweeps": {"drawn": sweep}, "perplexity": measured | {"broken": worse},
        "method": made.method | {"device": "cpu"},
    })  # fmt: skip
    card = model_card(hostile_plan, "cut", {}, report)
    assert "22\u00a0% worse" in card  # exp(0.2), in every language
    assert "2 seeds" not in card
