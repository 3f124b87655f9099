"""Forgetting as it happens: a `Trainer` callback that measures perplexity every few steps and draws the curve.

    Trainer(..., callbacks=[ForgettingCallback(tokenizer, languages=["en", "zh"], every=50, output="forgetting")])

Writes `forgetting.jsonl`, a line per language and step, and `forgetting.svg`, after every measurement.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import transformers

from surgeon.inside import replacing
from surgeon.loaded import perplexity
from surgeon.model.results import exponential
from surgeon.report.curves import Point, forgetting_figure
from surgeon.report.drawing import svg, themed


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
