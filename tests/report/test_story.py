"""The sentence that a page begins with says what the numbers say, and is about the right variant."""

from __future__ import annotations

import math
from typing import Any

import pytest
from reports import make_report

from surgeon.model.results import Measure
from surgeon.report.data import Report
from surgeon.report.entries import SweepReport, VariantReport
from surgeon.report.measured import perplexities, perplexity, summarize
from surgeon.report.sentences import evidence, headline, measured_lines, no_intervals, sentence
from surgeon.report.story import tell

BASE = {"ar": 3.0, "en": 3.1, "zh": 3.2}


def report_of(variants: dict[str, tuple[str, dict[str, float]]], regions: dict[str, dict[str, Any]]) -> Report:
    """A report of variants, each an operation and the factors by which perplexity rises; regions as in a recipe."""
    made = make_report()
    measures = {"base": {code: Measure(100 * log, 100, 400) for code, log in BASE.items()}}
    for name, (_, factors) in variants.items():
        measures[name] = {code: Measure(100 * (log + math.log(factors[code])), 100, 400) for code, log in BASE.items()}
    core = made.regions["core"]
    origins = {name: next(iter(spec.get("select", {"top": 0})), "top") for name, spec in regions.items()}
    return made.model_copy(update={
        "recipe": {"regions": regions},
        "regions": {name: core.model_copy(update={"fraction": 0.01, "origin": origins[name]}) for name in regions},
        "variants": {
            name: VariantReport(operations=[done], entries=10, written=False) for name, (done, _) in variants.items()
        },
        "sweeps": {}, "expectations": [],
        "perplexity": {name: {k: perplexity(m) for k, m in row.items()} for name, row in measures.items()},
        "summary": summarize(measures),
    })  # fmt: skip


REGIONS = {"core": {"select": {"top": 0.01}}, "low": {"select": {"bottom": 0.01}}, "any": {"select": {"random": 0.01}}}
CONTROL = {"low-cut": ("zero low", dict.fromkeys(BASE, 1.0)), "any-cut": ("zero any", dict.fromkeys(BASE, 1.02))}


def test_a_cut_is_told_beside_its_controls_whatever_their_order() -> None:
    cut = {"core-cut": ("zero core", {"ar": 2.1, "en": 18.3, "zh": 5.0})}
    expected = (
        "Zeroing 1\u00a0% of the decoder's weights makes all 3 languages 2.10 to 18.3 times worse; "
        "controls of the same size: random weights 2.0\u00a0%, lowest scores 0\u00a0%."
    )
    for variants in (cut | CONTROL, CONTROL | cut):
        report = report_of(variants, REGIONS)
        assert tell(report).cut == "core-cut"
        assert sentence(report, tell(report)) == expected


def test_controls_of_its_size_are_told_alone_and_others_are_called_that() -> None:
    report = report_of({"core-cut": ("zero core", dict.fromkeys(BASE, 3.0))} | CONTROL, REGIONS)
    for sizes, told in (
        ({"core-cut": 90, "low-cut": 90}, "controls of the same size: lowest scores 0\u00a0%."),
        ({"core-cut": 90}, "controls of other sizes: random weights (any-cut) 2.0\u00a0%, lowest scores (low-cut) 0"),
    ):
        sized = {name: report.variants[name].model_copy(update={"entries": size}) for name, size in sizes.items()}
        made = report.model_copy(update={"variants": report.variants | sized})
        assert f"; {told}" in sentence(made, tell(made))


def test_the_largest_weights_are_told_and_drawn_beside_the_cut() -> None:
    """Without them a core seems to be more than large weights."""
    regions = REGIONS | {"big": {"control": {"of": "core", "draw": "magnitude"}}}
    cut = {"core-cut": ("zero core", dict.fromkeys(BASE, 6.0)), "big-cut": ("zero big", dict.fromkeys(BASE, 13.0))}
    report = report_of(CONTROL | cut, regions)
    story = tell(report)
    assert (story.cut, story.controls) == ("core-cut", ("any-cut", "big-cut", "low-cut"))
    assert story.beside == "any"
    controls = "random weights 2.0\u00a0%, largest weights 13.0 times, lowest scores 0\u00a0%"
    assert sentence(report, story).endswith(f"; controls of the same size: {controls}.")


def test_what_was_in_reach_is_said() -> None:
    """A share is of the weights that could have been chosen, which are not always all."""
    report = report_of({"core-cut": ("zero core", dict.fromkeys(BASE, 3.0))}, {"core": {"layers": [0, 1]}})
    core = report.regions["core"]
    assert "1\u00a0% of the decoder's weights, layers 0 to 1, makes" in sentence(report, tell(report))
    only = core.model_copy(update={"roles": {role: core.roles[role] for role in ("attn.q", "norm")}})
    report = report.model_copy(update={"regions": {"core": only}, "recipe": {}})
    assert sentence(report, tell(report)).startswith("Zeroing 1\u00a0% of the weights in attn.q and norm makes")


@pytest.mark.parametrize(
    ("factors", "told"),
    [
        ((1.0, 1.004, 0.996), "changes none of 3 languages by 1\u00a0% or more"),
        ((1.03, 1.12, 1.05), "makes all 3 languages 3 to 12\u00a0% worse"),
        ((1.0, 1.5, 1.2), "makes 2 of 3 languages 20 to 50\u00a0% worse"),
        ((1.0, 1.0, 3.0), "makes Chinese 3.00 times worse"),
        ((0.8, 1.0, 1.0), "makes 1 language up to 20\u00a0% better"),
        ((1.02, 0.8, 0.7), "makes Arabic 2\u00a0% worse and makes 2 languages up to 30\u00a0% better"),
        ((0.9, 0.8, 0.7), "makes all 3 languages up to 30\u00a0% better"),
        ((math.nan, 4.0, 4.0), "breaks Arabic beyond numbers and makes 2 of 3 languages 4.00 times worse"),
        ((math.inf, math.inf, math.inf), "breaks all 3 languages beyond numbers"),
        ((1234.0, 2e6, 7.0), "makes all 3 languages 7.00 to 2.0e6 times worse"),
    ],
)
def test_an_effect_is_told_as_large_as_it_is(factors: tuple[float, ...], told: str) -> None:
    report = report_of({"core-cut": ("zero core", dict(zip(BASE, factors, strict=True)))}, REGIONS)
    assert sentence(report, tell(report)).endswith(f" {told}.")


def test_other_measurements_are_told_with_unit_direction_interval_and_chance() -> None:
    made = make_report()
    assert measured_lines(made, tell(made)) == [
        "Own end chosen, mean by language (less is worse): base 75.0\u00a0% (95\u00a0% interval 50.0 to "
        "90.0\u00a0%); cut 35.0\u00a0% (change \u221240.0 points, 95\u00a0% interval \u221250.0 to "
        "\u221225.0 points); by chance 25.0\u00a0%."
    ]


def test_regions_of_single_languages_are_told_together() -> None:
    regions = {code: {"select": {"top": 0.01, "monolingual": code}} for code in ("ar", "zh")}
    variants = {
        "ar-cut": ("zero ar", {"ar": 1.5, "en": 1.1, "zh": 1.0}),
        "zh-cut": ("zero zh", {"ar": 1.2, "en": 1.1, "zh": 3.0}),
    }  # fmt: skip
    report = report_of(variants, regions)
    assert tell(report).own == {"ar-cut": "ar", "zh-cut": "zh"}
    told = sentence(report, tell(report))
    assert (
        "makes that language 1.50 to 3.00 times worse, every other language 0 to 20\u00a0% worse; 2 languages" in told
    )


def test_a_card_tells_of_its_own_variant() -> None:
    report = report_of({"core-cut": ("zero core", dict.fromkeys(BASE, 3.0))} | CONTROL, REGIONS)
    story = tell(report, "any-cut")
    assert (story.cut, story.region) == ("any-cut", "any")
    assert "any-cut" not in story.controls


def test_what_was_not_measured_is_not_told() -> None:
    made = make_report()
    bare = made.model_copy(update={"perplexity": {}, "summary": {}, "sweeps": {}})
    assert sentence(bare, tell(bare)).startswith("The region core holds ")
    kept = {"kept": VariantReport(operations=["freeze core"], entries=0, written=True)}
    frozen = bare.model_copy(update={"variants": kept})
    assert sentence(frozen, tell(frozen)).startswith("The weights are the source's, byte for byte; a trainer")
    plain = frozen.model_copy(update={"recipe": {"variants": {"kept": {"write": {"dtype": "bfloat16"}}}}})
    assert sentence(plain, tell(plain)).startswith("The weights are the source's, decoded to bfloat16; a trainer")
    nothing = bare.model_copy(update={"regions": {}})
    assert sentence(nothing, tell(nothing)).endswith(" of m.")


def test_a_sweep_alone_is_told_by_its_ends() -> None:
    made = make_report()
    points = [point for sweep in made.sweeps.values() for point in sweep.points]
    swept = made.only(points)
    told = sentence(swept, tell(swept))
    assert told.startswith("At 6 points of a sweep, ")
    assert told.endswith("most at swept, kind core, share 0.1.")


def test_a_control_with_several_seeds_is_told_by_its_first_draw() -> None:
    variants = {f"any-cut-{seed}": (f"zero any-{seed}", dict.fromkeys(BASE, 1.01)) for seed in (0, 1)}
    report = report_of({"core-cut": ("zero core", dict.fromkeys(BASE, 3.0))} | variants, REGIONS)
    points = {name: [i] for i, name in enumerate(variants)}
    report = report.model_copy(update={"sweeps": {"any-cut": SweepReport(axes={"seed": [0, 1]}, points=points)}})
    assert tell(report).shown == ["core-cut", "any-cut-0"]


def test_a_model_that_was_made_for_showing_says_so_wherever_its_figures_are_told() -> None:
    from rich.console import Console

    from surgeon.report.html import page
    from surgeon.views.terminal import report_view

    made = make_report()
    shown = made.model_copy(update={"model": made.model.model_copy(update={"name": "builtin:tiny30"})})
    for report, said in ((shown, True), (made, False)):
        console = Console(record=True, width=400)
        console.print(report_view(report, "out"))
        assert ("says nothing about other models" in console.export_text()) is said
        assert ("says nothing about other models" in page(report)) is said


@pytest.mark.parametrize(
    ("held", "does"),
    [
        ("freeze core", "keep 1\u00a0% of the decoder's weights as they are"),
        ("train only core", "change 1\u00a0% of the decoder's weights, and nothing else"),
    ],
)
def test_what_only_trainers_are_told_is_no_operation(held: str, does: str) -> None:
    report = report_of({"kept": (held, dict.fromkeys(BASE, 1.0))}, REGIONS)
    kept = report.variants["kept"].model_copy(update={"entries": 0})
    report = report.model_copy(update={"variants": {"kept": kept}})
    story = tell(report)
    assert (story.cut, story.region) == ("kept", "core")
    expected = f"The weights are the source's, byte for byte; a trainer that heeds freeze/ will {does}."
    assert sentence(report, story) == expected


@pytest.mark.parametrize("held", ["freeze low", "train only core"])
def test_a_cut_that_trainers_are_told_something_of_is_told_as_the_cut(held: str) -> None:
    cut = {"core-cut": ("zero core", dict.fromkeys(BASE, 3.0))}
    report = report_of({"kept": (held, dict.fromkeys(BASE, 1.0))} | cut, REGIONS)
    assert tell(report).cut == "core-cut"
    both = report.variants["core-cut"].model_copy(update={"operations": ["zero core", held]})
    report = report.model_copy(update={"variants": {**report.variants, "core-cut": both}})
    told = sentence(report, tell(report))
    assert told.startswith("Zeroing 1\u00a0% of the decoder's weights makes all 3 languages 3.00 times worse")


def test_of_a_few_tokens_nothing_is_told() -> None:
    report = report_of({"core-cut": ("zero core", dict.fromkeys(BASE, 3.0))}, REGIONS)
    for tokens, enough in ((63, False), (64, True)):
        rows = {
            name: row | {"en": row["en"].model_copy(update={"tokens": tokens})}
            for name, row in report.perplexity.items()
        }
        told = sentence(report.model_copy(update={"perplexity": rows}), tell(report))
        assert told.startswith("Zeroing") == enough
        if not enough:
            assert told.startswith("Too little text to tell: English measured on fewer than 64 tokens (English: 63).")
            assert "verify.tokens" in told


def test_where_no_interval_can_be_given_it_is_said() -> None:
    windows = ((200.0, 50), (100.0, 50))
    report = report_of({"core-cut": ("zero core", dict.fromkeys(BASE, 3.0))}, REGIONS)  # of one window each
    told = no_intervals(report.perplexity)
    assert told is not None
    assert "No interval can be given for all 3 languages" in told
    assert "Set verify.window to 25 or less" in told
    measures = {name: {code: Measure(300, 100, 400, windows) for code in BASE} for name in ("base", "core-cut")}
    assert no_intervals(perplexities(measures)) is None
    assert no_intervals({}) is None


def test_the_rise_of_a_language_s_own_region_is_that_of_logarithms_beside_its_control() -> None:
    from surgeon.report.tables import own_table

    regions: dict[str, dict[str, Any]] = {
        "ar": {"select": {"top": 0.01, "monolingual": "ar"}},
        "ar-largest": {"control": {"of": "ar", "draw": "magnitude"}},
    }  # fmt: skip
    variants = {
        "ar-cut": ("zero ar", {"ar": 4.0, "en": 2.0, "zh": 2.0}),
        "big-cut": ("zero ar-largest", {"ar": 3.0, "en": 1.0, "zh": 1.0}),
    }
    rows = [[cell.text for cell in row.cells] for row in own_table(report_of(variants, regions)).rows]
    assert rows == [
        ["Arabic", "own region", "4.00", "2.00", "2.0", "ar-cut"],  # log 4 / log 2
        ["Arabic", "largest", "3.00", "1.00", "-", "big-cut"],  # nothing to be a multiple of
    ]


def test_what_is_lost_is_said_and_evidence_has_unit_number_and_guessing() -> None:
    cut = {"core-cut": ("zero core", {"ar": 500.0, "en": 18.3, "zh": 5.0})}
    report = report_of(cut | CONTROL, REGIONS)
    known = report.model_copy(
        update={"model": report.model.model_copy(update={"vocabulary": 2000})}
    )  # ar: exp(3) * 99.6
    story = tell(known)
    told = headline(known, story)
    assert told == (
        "Zeroing 1\u00a0% of the decoder's weights makes Arabic no better than guessing and makes 2 of 3 languages "
        "5.00 to 18.3 times worse."
    )
    mean = (500 * 18.3 * 5) ** (1 / 3)
    line = evidence(known, story)
    assert line is not None
    assert f"geometric mean of 3 languages: core-cut {mean:.1f}; any-cut 1.02; low-cut 1.00" in line
    assert line.endswith(f"A uniform guess: {2000 / math.exp(3.1):.1f}.")
    few = report.model_copy(update={"model": report.model.model_copy(update={"vocabulary": 2})})
    assert headline(few, story) == (
        "Zeroing 1\u00a0% of the decoder's weights makes all 3 languages 5.00 to 500 times worse, but in all 3 "
        "languages the base itself is no better than guessing."
    )
    assert "uniform guess" not in str(evidence(few, story))


def test_a_report_of_before_there_were_steps_says_the_same() -> None:
    report = report_of({"core-cut": ("zero core", dict.fromkeys(BASE, 3.0))}, REGIONS)
    assert [(step.kind, step.region) for step in report.variants["core-cut"].steps] == [("zero", "core")]
    held = VariantReport(operations=["train only core"], entries=3, written=True)
    assert [(step.kind, step.region) for step in held.steps] == [("train_only", "core")]
