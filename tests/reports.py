"""A small report that holds everything a report can, made without running a model."""

from __future__ import annotations

import math

import numpy as np

from surgeon.model.results import Continuation, Measure, Quantity
from surgeon.recipe.schema import ExpectSpec
from surgeon.region.region import Region
from surgeon.report.data import Report
from surgeon.report.entries import (
    Figure,
    MeasurementReport,
    ModelReport,
    PassageReport,
    ScoreReport,
    SweepReport,
    VariantReport,
)
from surgeon.report.expected import check_expectations
from surgeon.report.measured import perplexity, summarize
from surgeon.report.regions import region_report

LANGUAGES = ["ar", "en", "fr", "ko", "no", "zh", "klingon"]
HOSTILE = "</bdi><script>alert(2)</script>\x1b[2J\u202e\n\ufffd مرحبا"
POINTS = {f"swept-{kind}-{share}": [kind, share] for kind in ("core", "<b>") for share in (0.001, 0.01, 0.1)}
VARIANTS = ["base", "cut", "broken", "<script>alert(1)</script>"]


def make_region() -> Region:
    generator = np.random.default_rng(0)
    masks = {}
    for layer in range(3):
        for module, shape in {"self_attn.q_proj": (8, 16), "mlp.down_proj": (16, 40)}.items():
            mask = generator.random(shape) < 0.05
            mask[3] = True
            masks[f"model.layers.{layer}.{module}.weight"] = mask
        masks[f"model.layers.{layer}.input_layernorm.weight"] = np.zeros(16, np.bool_)
    return Region.from_masks(masks)


def said(name: str) -> Continuation:
    stopped = "end" if name == "cut" else "length"
    return Continuation(prompt="قال <i>", continuation=HOSTILE, tokens=9, stopped=stopped)  # type: ignore[arg-type]


def make_choice() -> MeasurementReport:
    """How often each model chose a text's own end: the base and one variant in all languages, one not a number."""
    accuracy = Quantity(
        name="accuracy", title="own end chosen", unit="", worse="less", compare="difference", share=True, chance=0.25
    )
    found = {
        "base": {code: Figure(value=0.75, pieces=16, low=0.5, high=0.9) for code in LANGUAGES},
        "cut": {
            code: Figure(value=0.35, pieces=16, change=-0.4, low=-0.5, high=-0.25, beyond_chance=code != "no")
            for code in LANGUAGES
        },
        "broken": {"ar": Figure(value=math.nan, pieces=16, change=math.nan)},
    }
    overall = {name: {"accuracy": groups["ar"]} for name, groups in found.items()}
    return MeasurementReport(
        title="which of four ends is a paragraph's own", by="language", quantities=[accuracy], overall=overall,
        found={name: {code: {"accuracy": item} for code, item in groups.items()} for name, groups in found.items()},
    )  # fmt: skip


def make_report() -> Report:
    """Four models and the points of a sweep on seven languages; one overflows, one is not a number, one point both."""
    measures: dict[str, dict[str, Measure]] = {}
    for i, variant in enumerate([*VARIANTS, *POINTS]):
        measures[variant] = {
            code: Measure(nll=100.0 * (3 + 0.2 * i + 0.1 * j), tokens=100, bytes=400)
            for j, code in enumerate(LANGUAGES)
        }
    measures["broken"]["ar"] = Measure(math.nan, 100, 400)
    measures["broken"]["zh"] = Measure(1e6, 100, 400)
    measures["swept-core-0.1"] = measures["broken"]
    losses: dict[str, list[float | None]] = {name: [9.0 * i] for i, name in enumerate(VARIANTS)}
    rows = {name: {code: perplexity(item) for code, item in row.items()} for name, row in measures.items()}
    summary = summarize(measures)
    expect = [ExpectSpec(variant="cut", ratio_at_least=1.1), ExpectSpec(variant="broken", ratio_at_most=2.0)]
    return Report(
        name="test <report>",
        recipe={"version": 1, "name": "a & b", "model": "m"},
        model=ModelReport(
            name="m", revision=None, model_type="llama", parameters=1000, tensors=9, shards=1, bytes=4000,
            content_sha256="0" * 64,
        ),
        scores=[ScoreReport(kind="grad_param", language="ar", sequences=3, tokens=30)],
        regions={"core": region_report(make_region(), {}, "top")},
        variants={
            name: VariantReport(operations=["zero core"], entries=10, written=name == "cut", path="out/variants/cut")
            for name in [*VARIANTS[1:], *POINTS]
        },
        sweeps={"swept": SweepReport(axes={"kind": ["core", "<b>"], "share": [0.001, 0.01, 0.1]}, points=POINTS)},
        generations={name: [said(name)] for name in [*VARIANTS, *POINTS]},
        method={"tokens": 512, "window": 256, "stride": 256, "bos": "never", "precision": "float32"},
        perplexity=rows,
        summary=summary,
        measurements={"choice": make_choice()},
        passages={"ar": PassageReport(tokens=[HOSTILE], words=[0], losses=losses)},
        expectations=check_expectations(expect, rows, summary, {}),
        timings={"total": 1.0},
        environment={"python": "3.11", "packages": {"model-surgeon": "0.1.0"}},
    )  # fmt: skip
