"""The forgetting curve: perplexity by step of a training, as a multiple of what it was before the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgeon.model.results import exponential
from surgeon.report.drawing import (
    SERIES,
    SHAPES,
    Figure,
    amount,
    colour,
    drawn_ratios,
    finished,
    layer,
    multiples,
    the_base,
    tips,
    words,
)
from surgeon.report.words import number
from surgeon.text.languages import language


@dataclass(frozen=True)
class Point:
    """The perplexity of a language, as its natural logarithm, after so many steps."""

    step: int
    language: str
    log_perplexity: float


def forgetting_figure(points: Sequence[Point]) -> Figure:
    """Draw a line per language: above the line at ×1 it was forgotten, below it was learned."""
    first = min((point.step for point in points), default=0)
    before = {point.language: point.log_perplexity for point in points if point.step == first}
    logs = [point.log_perplexity - before[point.language] for point in points]
    drawn, rows = drawn_ratios(logs), []
    for point, log in zip(points, logs, strict=True):
        rows.append({
            "step": point.step, "language": language(point.language).name, "ratio": drawn(log),
            "times": f"×{number(exponential(log))}", "perplexity": number(exponential(point.log_perplexity)),
        })  # fmt: skip
    names = list(dict.fromkeys(row["language"] for row in rows))
    hues, shapes = ([kinds[i % len(kinds)] for i in range(len(names))] for kinds in (SERIES, SHAPES))
    hue = words("language", scale={"domain": names, "range": list(map(colour, hues))}, legend={"title": None})
    shape = words("language", scale={"domain": names, "range": shapes}, legend={"title": None})
    hover = tips(language="language", step="step", times="of the perplexity before", perplexity="perplexity")
    encoding = {
        "x": amount("step", title="steps", axis={"grid": False}),
        "y": multiples(False, "perplexity, as a multiple of that before training"),
    }
    layers = [
        layer("line", {"strokeWidth": 2}, color=hue),
        layer("point", {"filled": True, "size": 40, "opacity": 1}, color=hue, shape=shape, tooltip=hover),
    ]
    spec = {
        "data": {"values": rows}, "width": 520, "height": 300,
        "layer": [the_base("y"), {"encoding": encoding, "layer": layers}],
    }  # fmt: skip
    caption = "Perplexity by training step, as a multiple of that before. Above ×1 is forgotten, below is learned."
    return Figure("forgetting", "What training did, by language", caption, finished(spec), key=True)
