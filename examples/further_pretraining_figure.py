"""What `further_pretraining.py` measured, as a table (Markdown, to stdout) and a figure (SVG).

    python examples/further_pretraining_figure.py out/claim5/curves.jsonl --figure claim5.svg

Forgetting is the mean, over all languages but the trained one, of what their nats per token have risen by; gain is what
those of the trained language have fallen by. At equal gain: every arm's curve of forgetting over gain is read
(linearly between measurements) at the smallest gain that any frozen or unfrozen arm of the seed ended with.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from surgeon.report.svg import WIDTH, Figure, legend, line, marker, text

Nats = dict[str, dict[str, float]]  # register -> language -> nats per token
Key = tuple[str, int, int]  # arm, seed, step
BASE = "nothing"


class Curves:
    """All measurements of one file, at one learning rate; an arm `core-5 put back` is a reversion."""

    def __init__(self, path: Path, learning_rate: float | None) -> None:
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
    shown = [f"{value:.{digits}f}" for value in (mean(values), min(values), max(values))]
    return f"{shown[0]}{unit} ({shown[1]} to {shown[2]})"


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
        if arm == BASE:
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
    """Return the share of the unfrozen arm's forgetting that this arm spares, after as many steps."""
    return 1 - curves.forgetting(arm, seed, step, register) / curves.forgetting(BASE, seed, step, register)


def less_at_equal_gain(curves: Curves, arm: str, seed: int) -> float:
    trained, last = curves.trained_on, curves.steps[-1]
    gain = min(curves.gain(arm, seed, last, trained) for arm in curves.arms)
    frozen, free = (curves.forgetting_at(gain, name, seed, trained) for name in (arm, BASE))
    return 1 - frozen / free


def better_off(curves: Curves, arm: str, seed: int) -> int:
    """Return how many other languages, in the register trained on, are better than in the unfrozen arm."""
    here, free = (curves.rise(name, seed, curves.steps[-1], curves.trained_on) for name in (arm, BASE))
    return sum(here[code] < free[code] for code in here)


def languages(curves: Curves) -> int:
    return len(curves.rise(BASE, curves.seeds[0], 0, curves.trained_on))


def panel(
    top: float,
    title: str,
    curves: Curves,
    arms: Sequence[str],
    steps: Sequence[int],
    value: Callable[[str, int, int], float],
) -> tuple[str, float]:
    """Draw means over the seeds, and a stroke from least to most, against the steps; returns it and its height."""
    left, right, high = 52.0, WIDTH - 12, 150.0
    means = {(arm, step): mean(value(arm, s, step) for s in curves.seeds) for arm in arms for step in steps}
    all_values = [value(arm, s, step) for arm in arms for step in steps for s in curves.seeds]
    low, above = min(all_values), max(all_values)

    def at(step: int, y: float) -> tuple[float, float]:
        return left + (right - left) * step / curves.steps[-1], top + 26 + high * (above - y) / (above - low or 1)

    parts = [text(left, top + 12, title, kind="group")]
    for i in range(5):
        y = low + (above - low) * i / 4
        height = at(0, y)[1]
        parts += [line(left, height, right, height, "grid"), text(left - 7, height + 4, f"{y:.3g}", "end", "small")]
    parts += [text(at(step, low)[0], top + high + 42, str(step), "middle", "small") for step in curves.steps]
    for arm in arms:
        for before, after in itertools.pairwise(steps):
            parts.append(line(*at(before, means[arm, before]), *at(after, means[arm, after]), "link"))
        for step in steps:
            x, y = at(step, means[arm, step])
            seeds = [at(step, value(arm, seed, step))[1] for seed in curves.seeds]
            parts.append(line(x, min(seeds), x, max(seeds), "link"))
            parts.append(marker(x, y, curves.arms.index(arm), f"{arm}, step {step}: {means[arm, step]:.4g}"))
    return "".join(parts), high + 56


def figure(curves: Curves) -> Figure:
    trained = curves.trained_on
    drawn = [arm for arm in curves.arms if arm != "core-1 put back"]
    curves.arms = drawn  # six series, as many as there are colours
    frozen = [arm for arm in drawn if "put back" not in arm]
    parts, y = legend([arm if "put" in arm or arm == BASE else f"{arm} frozen" for arm in drawn], 0)
    body = [parts]
    panels = [
        (f"{curves.language}: perplexity, times the base's", frozen, curves.steps,
         lambda arm, seed, step: math.exp(-curves.gain(arm, seed, step, trained))),
        ("other languages: perplexity, times the base's", frozen, curves.steps,
         lambda arm, seed, step: math.exp(curves.forgetting(arm, seed, step, trained))),
        ("other languages: forgetting, less than with nothing frozen (%)", drawn[1:], curves.steps[1:],
         lambda arm, seed, step: 100 * less(curves, arm, seed, step, trained)),
    ]  # fmt: skip
    for title, arms, steps, value in panels:
        part, height = panel(y + 8, title, curves, arms, steps, value)
        body.append(part)
        y += height + 8
    description = (
        f"Training on in {curves.language}, by step; means over seeds {curves.seeds}, strokes from least to most."
    )
    title = "Freezing the core against forgetting, over training steps"
    return Figure("claim5", title, description, y + 4, "".join(body))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path)
    parser.add_argument("--figure", type=Path, help="SVG file to write")
    parser.add_argument("--learning-rate", type=float, help="that of the file's first line by default")
    options = parser.parse_args()
    curves = Curves(options.curves, options.learning_rate)
    if not curves.seeds:
        parser.error(f"{options.curves}: no seed has all arms to the last step yet")
    print(f"Step {curves.steps[-1]}, seeds {curves.seeds}:", *table(curves), sep="\n")
    if options.figure is not None:
        options.figure.write_text(figure(curves).standalone(), encoding="utf-8")


if __name__ == "__main__":
    main()
