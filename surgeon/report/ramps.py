"""Maps: cells in the colour of their step on a ramp, with what they say in them."""

from __future__ import annotations

import itertools
import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.report.drawing import COOL, HEAT, STRONG, Spec, colour, layer, words

LOST = "no better than guessing"


@dataclass(frozen=True)
class Ramp:
    """Colours for the steps of a value: one below the first of `ends`, one from each on; `lowest` names the first."""

    title: str
    ends: tuple[float, ...]
    colours: tuple[str, ...]
    lowest: str
    sign: str = ""

    def of(self, value: float, lost: bool = False) -> dict[str, Any]:
        """Return a value's step, and whether text on its colour takes the ground's; not a number is the last.

        A model that guesses no better than uniformly is `lost`, whatever the value.
        """
        if lost:
            return {"step": LOST, "strong": True}
        step = len(self.ends) if math.isnan(value) else bisect(self.ends, value)
        return {"step": self.labels[step], "strong": self.colours[step] in STRONG}

    @property
    def labels(self) -> list[str]:
        """The steps in words."""
        between = [f"{self.sign}{low:g} to {high:g}" for low, high in itertools.pairwise(self.ends)]
        return [self.lowest, *between, f"{self.sign}{self.ends[-1]:g} and more"]

    def channel(self, rows: Sequence[Mapping[str, Any]]) -> Spec:
        """Return the channel of colour; its legend has the steps that occur."""
        found = {row["step"] for row in rows}
        steps = [*zip(self.labels, self.colours, strict=True), (LOST, "lost")]
        used = {label: colour(name) for label, name in steps if label in found}
        legend = {
            "title": self.title, "orient": "bottom", "columns": 2,
            "symbolType": "square", "symbolSize": 130, "symbolStrokeWidth": 0,
        }  # fmt: skip
        return words("step", scale={"domain": list(used), "range": list(used.values())}, legend=legend)


# Grey is what lies within 1 % of the base, or of chance.
RATIOS = Ramp(
    "times the base's perplexity", (0.5, 0.8, 0.99, 1.01, 1.05, 1.2, 2, 10, 100, 1000), (*COOL, "none", *HEAT),
    "under ×0.5", "×",
)  # fmt: skip
JACCARD = Ramp("Jaccard index", (0.01, 0.05, 0.1, 0.2, 0.3, 0.5), ("none", *HEAT[:6]), "by chance")
CROWDING = Ramp("per cent of the entries", (3, 5, 10, 20, 40, 70), ("none", *HEAT[:6]), "under 3")


def heads(field: str, names: Sequence[str], level: bool = False, **more: Any) -> Spec:
    """Return an axis of names above a map."""
    angle = 0 if level else -40
    axis = {"orient": "top", "labelAngle": angle, "domain": False, "ticks": False, "labelLimit": 160, **more}
    return words(field, sort=list(names), title=None, axis=axis)


def cells(rows: Sequence[Mapping[str, Any]], ramp: Ramp, hover: list[Spec], are_said: bool) -> list[Spec]:
    """Return a map's layers: fields in the colour of their level, and in them what is `said`."""
    look = {"stroke": colour("ground"), "strokeWidth": 1}
    ink = {"condition": {"test": "datum.strong", "value": colour("ground")}, "value": colour("ink")}
    made = [layer("rect", look, color=ramp.channel(rows), tooltip=hover)]
    return [*made, layer("text", {"fontSize": 11}, text=words("said"), color=ink)] if are_said else made
