"""Forgetting as it happens: a `Trainer` callback that measures perplexity every few steps and draws the curve.

    Trainer(..., callbacks=[ForgettingCallback(tokenizer, languages=["en", "zh"], every=50, output="forgetting")])

Writes `forgetting.jsonl`, a line per language and step, and `forgetting.svg`, after every measurement.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from surgeon.inside import replacing
from surgeon.loaded import perplexity
from surgeon.model.results import exponential
from surgeon.report.charts import amount, dots, drawn_ratios, finished, hue_and_shape, layer, multiples, the_base, tips
from surgeon.report.drawing import Figure, svg, themed
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
    names = list(dict.fromkeys(language(point.language).name for point in points))
    hue, shape = hue_and_shape("language", names, {"title": None})
    hover = tips(language="language", step="step", times="of the perplexity before", perplexity="perplexity")
    encoding = {
        "x": amount("step", title="steps", axis={"grid": False}),
        "y": multiples(False, "perplexity, as a multiple of that before training"),
    }
    layers = [
        layer("line", {"strokeWidth": 2}, color=hue),
        dots(40, hover, hue, shape),
    ]
    spec = {
        "data": {"values": rows}, "width": 520, "height": 300,
        "layer": [the_base("y"), {"encoding": encoding, "layer": layers}],
    }  # fmt: skip
    caption = "Perplexity by training step, as a multiple of that before. Above ×1 is forgotten, below is learned."
    return Figure("forgetting", "What training did, by language", caption, finished(spec), key=True)


class ForgettingCallback(transformers.TrainerCallback):
    """Measure the model that a Trainer trains, before the first step, every `every` steps, and at the end.

    `points` holds what was measured. Further `options` are those of `surgeon.perplexity`: `corpus`, `languages`,
    `tokens`, `window`. Of several processes the first one measures; the model must be whole in it (no ZeRO-3, no FSDP).
    """

    def __init__(self, tokenizer: Any, *, every: int = 100, output: str | Path = "forgetting", **options: Any) -> None:
        if every < 1:
            raise ValueError(f"every={every}: give a number of steps, at least 1")
        self.tokenizer, self.every, self.output = tokenizer, every, Path(os.path.expanduser(output))
        self.options = {"tokens": 256, "window": 128, **options}
        self.points: list[Point] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model as it comes."""
        self.points = []
        self._measure(state, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure if it is time to."""
        if state.global_step % self.every == 0:
            self._measure(state, kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure what came out."""
        self._measure(state, kwargs["model"])

    def _measure(self, state: Any, model: Any) -> None:
        step = int(state.global_step)
        if not state.is_world_process_zero or any(point.step == step for point in self.points):
            return
        found = perplexity(model, self.tokenizer, **self.options)
        self.points += [Point(step, language, item.log_perplexity) for language, item in found.items()]
        rows = [
            json.dumps({"step": p.step, "language": p.language, "perplexity": exponential(p.log_perplexity)})
            for p in self.points
        ]
        with replacing(self.output / "forgetting.jsonl") as part:
            part.write_text("\n".join(rows) + "\n", encoding="utf-8")
        if step:
            with replacing(self.output / "forgetting.svg") as part:
                part.write_text(themed(svg(self.plot()), dark=False), encoding="utf-8")

    def plot(self) -> Any:
        """Return the curve so far, which a notebook shows."""
        return forgetting_figure(self.points)
