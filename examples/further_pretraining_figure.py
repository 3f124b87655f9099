"""What `further_pretraining.py` measured, as a table (Markdown, to stdout) and a figure (SVG).

    python examples/further_pretraining_figure.py out/claim5/curves.jsonl --figure claim5.svg

Forgetting is the mean, over all languages but the trained one, of what their nats per token have risen by; gain is what
those of the trained language have fallen by. At equal gain: every arm's curve of forgetting over gain is read
(linearly between measurements) at the smallest gain that any frozen or unfrozen arm of the seed ended with. What is
less is less than in the arm that nothing was frozen in or, with `--against ARM`, in that one, seed by seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from surgeon.report.charts import SERIES, SHAPES, Spec, amount, colour, finished, layer, words
from surgeon.report.drawing import Figure, svg, themed

Nats = dict[str, dict[str, float]]  # register -> language -> nats per token
Rows = list[dict[str, Any]]
Key = tuple[str, int, int]  # arm, seed, step
BASE = "nothing"
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # t at 97.5 %, by number of seeds


class Curves:
    """All measurements of one file, at one learning rate; an arm `core-5 put back` is a reversion."""

    def __init__(self, path: Path, learning_rate: float | None, against: str = BASE) -> None:
        self.against = against
        lines = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
        rate = learning_rate or lines[0]["learning_rate"]
        lines = [row for row in lines if row["learning_rate"] == rate]
        self.language = lines[0]["language"]
        self.trained_on = lines[0]["trained_on"]
        self.registers = list(lines[0]["nats_per_token"])
        self.seeds = sorted({row["seed"] for row in lines})
        self.steps = sorted({row["step"] for row in lines})
        base = next(row["nats_per_token"] for row in lines if row["step"] == 0)
        self.at: dict[Key, Nats] = {}
        for row in lines:
            arm = row["arm"] if row["reverted"] is None else f"{row['reverted']} put back"
            self.at[arm, row["seed"], row["step"]] = row["nats_per_token"]
        self.arms = list(dict.fromkeys(arm for arm, *_ in self.at))
        self.at |= {(arm, seed, 0): base for arm in self.arms for seed in self.seeds}
        self.seeds = [s for s in self.seeds if all((arm, s, self.steps[-1]) in self.at for arm in self.arms)]

    def gain(self, arm: str, seed: int, step: int, register: str) -> float:
        """Return by how many nats a token the trained language has become better."""
        before, after = (self.at[arm, seed, when][register][self.language] for when in (0, step))
        return before - after

    def forgetting(self, arm: str, seed: int, step: int, register: str) -> float:
        """Return by how many nats a token the other languages have become worse, on average."""
        return mean(self.rise(arm, seed, step, register).values())

    def rise(self, arm: str, seed: int, step: int, register: str) -> dict[str, float]:
        before, after = (self.at[arm, seed, when][register] for when in (0, step))
        return {code: after[code] - before[code] for code in before if code != self.language}

    def forgetting_at(self, gain: float, arm: str, seed: int, register: str) -> float:
        """Return the forgetting where the curve first reaches a gain in the register that was trained on."""
        points = [
            (self.gain(arm, seed, step, self.trained_on), self.forgetting(arm, seed, step, register))
            for step in self.steps
        ]
        for (low, first), (high, second) in itertools.pairwise(points):
            if low <= gain <= high:
                return first + (second - first) * (gain - low) / (high - low)
        return math.nan


def spread(values: Sequence[float], unit: str = "", digits: int = 3) -> str:
    """Return mean, least and most, and half the 95 % interval of the mean where there are seeds enough for one."""
    shown = [f"{value:.{digits}f}" for value in (mean(values), min(values), max(values))]
    student = STUDENT.get(len(values))
    half = "" if student is None else f", ± {student * stdev(values) / math.sqrt(len(values)):.{digits}f}"
    return f"{shown[0]}{unit} ({shown[1]} to {shown[2]}{half})"


def table(curves: Curves) -> list[str]:
    last, trained = curves.steps[-1], curves.trained_on
    heads = ["arm", f"{curves.language}, {trained}", *(f"others, {register}" for register in curves.registers)]
    heads += [f"less forgetting, {register}" for register in curves.registers]
    heads += [f"the same at equal gain, {trained}", "languages better off"]
    rows = [heads, ["---"] * len(heads)]
    for arm in curves.arms:
        row = [arm, spread([math.exp(-curves.gain(arm, seed, last, trained)) for seed in curves.seeds])]
        for register in curves.registers:
            row.append(spread([math.exp(curves.forgetting(arm, seed, last, register)) for seed in curves.seeds]))
        if arm == curves.against:
            rows.append([*row, *("" for _ in curves.registers), "", ""])
            continue
        for register in curves.registers:
            row.append(spread([100 * less(curves, arm, seed, last, register) for seed in curves.seeds], " %", 1))
        equal = [100 * less_at_equal_gain(curves, arm, seed) for seed in curves.seeds]
        better = [better_off(curves, arm, seed) for seed in curves.seeds]
        shown = "no gain" if any(map(math.isnan, equal)) else spread(equal, " %", 1)
        rows.append([*row, shown, f"{min(better)} to {max(better)} of {languages(curves)}"])
    return ["| " + " | ".join(row) + " |" for row in rows]


def less(curves: Curves, arm: str, seed: int, step: int, register: str) -> float:
    """Return the share of the other arm's forgetting that this arm spares, after as many steps."""
    return 1 - curves.forgetting(arm, seed, step, register) / curves.forgetting(curves.against, seed, step, register)


def less_at_equal_gain(curves: Curves, arm: str, seed: int) -> float:
    trained, last = curves.trained_on, curves.steps[-1]
    gain = min(curves.gain(arm, seed, last, trained) for arm in curves.arms)
    here, there = (curves.forgetting_at(gain, name, seed, trained) for name in (arm, curves.against))
    return 1 - here / there


def better_off(curves: Curves, arm: str, seed: int) -> int:
    """Return how many other languages, in the register trained on, are better than in the other arm."""
    here, there = (curves.rise(name, seed, curves.steps[-1], curves.trained_on) for name in (arm, curves.against))
    return sum(here[code] < there[code] for code in here)


def languages(curves: Curves) -> int:
    return len(curves.rise(BASE, curves.seeds[0], 0, curves.trained_on))


def rows_of(curves: Curves, arms: Sequence[str], steps: Sequence[int], value: Callable[[str, int, int], float]) -> Rows:
    """Return, by arm and step, the mean over the seeds, the least and the most."""
    rows = []
    for arm in arms:
        for step in steps:
            values = [value(arm, step, seed) for seed in curves.seeds]
            name = arm if "put" in arm or arm == BASE else f"{arm} frozen"
            rows.append({"arm": name, "step": step, "mean": mean(values), "low": min(values), "high": max(values)})
    return rows


def panel(title: str, rows: Rows, arms: Sequence[str]) -> Spec:
    """Draw means over the seeds, and a stroke from least to most, against the steps."""
    hue = words("arm", title=None, scale={"domain": arms, "range": [colour(name) for name in SERIES[: len(arms)]]})
    shape = words("arm", title=None, scale={"domain": arms, "range": SHAPES[: len(arms)]})
    layers = [
        layer("rule", {"strokeWidth": 1.4}, y=amount("low", title=None), y2={"field": "high"}, color=hue),
        layer("line", {"strokeWidth": 1, "opacity": 0.7}, color=hue),
        layer("point", {"filled": True, "size": 60, "opacity": 1}, color=hue, shape=shape),
    ]
    x, y = amount("step", title="step", axis={"grid": False}), amount("mean", title=None, scale={"zero": False})
    return {
        "title": title, "width": 470, "height": 150, "data": {"values": rows}, "encoding": {"x": x, "y": y},
        "layer": layers,
    }  # fmt: skip


def figure(curves: Curves) -> Figure:
    trained, last = curves.trained_on, curves.steps[-1]
    drawn = [arm for arm in curves.arms if arm != "core-1 put back"]
    frozen = [arm for arm in drawn if "put back" not in arm]
    panels = [
        (f"{curves.language}: perplexity, times the base's", frozen, curves.steps,
         lambda arm, step, seed: math.exp(-curves.gain(arm, seed, step, trained))),
        ("other languages: perplexity, times the base's", frozen, curves.steps,
         lambda arm, step, seed: math.exp(curves.forgetting(arm, seed, step, trained))),
        (f"other languages: forgetting, less than with {curves.against} frozen (%)", drawn[1:], curves.steps[1:],
         lambda arm, step, seed: 100 * less(curves, arm, seed, step, trained)),
    ]  # fmt: skip
    rows = [(title, rows_of(curves, arms, steps, value)) for title, arms, steps, value in panels]
    names = list(dict.fromkeys(row["arm"] for _, part in rows for row in part))
    spec = finished({"vconcat": [panel(title, part, names) for title, part in rows], "spacing": 24})
    caption = (
        f"Training on in {curves.language}, by step, to step {last}; means over seeds {curves.seeds}, strokes from "
        "least to most."
    )
    return Figure("claim5", "Freezing the core against forgetting, over training steps", caption, spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path)
    parser.add_argument("--figure", type=Path, help="SVG file to write")
    parser.add_argument("--learning-rate", type=float, help="that of the file's first line by default")
    parser.add_argument(
        "--against", default=BASE, help="the arm that the others are compared with (default: %(default)s)"
    )
    options = parser.parse_args()
    curves = Curves(options.curves, options.learning_rate, options.against)
    if options.against not in curves.arms:
        parser.error(f"{options.curves}: no arm {options.against}; there are {', '.join(curves.arms)}")
    if not curves.seeds:
        parser.error(f"{options.curves}: no seed has all arms to the last step yet")
    print(f"Step {curves.steps[-1]}, seeds {curves.seeds}:", *table(curves), sep="\n")
    if options.figure is not None:
        options.figure.write_text(themed(svg(figure(curves)), dark=False), encoding="utf-8")


if __name__ == "__main__":
    main()
