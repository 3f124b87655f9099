"""The report of a run as data: `report.json` is this and nothing else; everything shown is rendered from it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgeon.checkpoint.plain_json import read_object
from surgeon.errors import InputError
from surgeon.model.results import PERPLEXITY, Continuation, exponential
from surgeon.notebook import table, view
from surgeon.report.entries import (
    Entry,
    Expectation,
    Figure,
    MeasurementReport,
    ModelReport,
    PartsReport,
    PassageReport,
    Perplexity,
    PushReport,
    ScoreReport,
    Summary,
    SweepReport,
    VariantReport,
)
from surgeon.report.regions import OverlapReport, RegionReport
from surgeon.report.words import coordinate, interval, number
from surgeon.text.languages import Language, language

_COLUMNS = (
    "variant", "language", "name", "script", "family", "nll", "tokens", "bytes", "perplexity", "bits_per_byte", "ratio",
    "low", "high",
)  # fmt: skip


class Report(Entry):
    """Everything that one `apply` found. `parts` are by variant, and by what its cut was taken apart by."""

    schema_version: int = 1
    name: str
    recipe: dict[str, Any]
    model: ModelReport
    scores: list[ScoreReport] = []
    regions: dict[str, RegionReport] = {}
    overlaps: list[OverlapReport] = []
    variants: dict[str, VariantReport] = {}
    sweeps: dict[str, SweepReport] = {}
    method: dict[str, Any] = {}
    perplexity: dict[str, dict[str, Perplexity]] = {}
    summary: dict[str, Summary] = {}
    measurements: dict[str, MeasurementReport] = {}
    parts: dict[str, dict[str, PartsReport]] = {}
    passages: dict[str, PassageReport] = {}
    generations: dict[str, list[Continuation]] = {}
    expectations: list[Expectation] = []
    pushed: dict[str, PushReport] = {}
    timings: dict[str, float]
    environment: dict[str, Any]

    def __repr__(self) -> str:
        held = sum(item.passed for item in self.expectations)
        told = f", {held} of {len(self.expectations)} expectations held" if self.expectations else ""
        languages = len(self.perplexity.get("base", {}))
        return (
            f"Report({self.name} on {self.model.name}: {len(self.regions)} regions, {len(self.variants)} variants, "
            f"{languages} languages{told})"
        )

    __str__ = __repr__

    def plot(self, name: str | None = None) -> Any:
        """Return a figure, which a notebook shows: by name, such as `perplexity`, `ratios` or `scan`, or the first."""
        return view("report", self, name)

    def _repr_html_(self) -> str:
        """Show the report in a notebook: what became of each variant."""
        rows = [
            (name, f"{self.variants[name].entries:,}" if name in self.variants else "",
             number(item.geometric_mean_perplexity), number(item.ratio_to_base), interval(item.low, item.high))
            for name, item in self.summary.items()
        ]  # fmt: skip
        return table(repr(self), ["variant", "entries", "perplexity", "x base", "95 %"], rows)

    def to_pandas(self, measurement: str = PERPLEXITY) -> Any:
        """Return what was measured as a `pandas.DataFrame`, the base's rows first.

        Of perplexity there is a row per variant and language: variant, language, name, script, family, nll, tokens,
        bytes, perplexity, bits_per_byte, ratio (to the base), low, high (the ratio's interval; missing for the base).

        Of any other `measurement`, by its key in the recipe's `verify`, there is a row per variant, group (a language
        or a task) and quantity: variant, group, quantity, title, unit, worse ("more" or "less"), compare, chance,
        value, change (from the base's), low, high (of the change, or else of the value), pieces, p, beyond_chance.

        Raises:
            InputError: this was not measured.
        """
        import pandas  # type: ignore[import-untyped]

        if measurement != PERPLEXITY:
            return pandas.DataFrame(self._rows_of(measurement))
        rows = []
        for variant, measured in self.perplexity.items():
            for code, item in measured.items():
                ratio = exponential(item.log_perplexity - self.perplexity["base"][code].log_perplexity)
                values = {**vars(self.language(code)), **item.model_dump(include=set(_COLUMNS))}
                rows.append({"variant": variant, "language": code, **values, "ratio": ratio})
        return pandas.DataFrame(rows, columns=list(_COLUMNS))

    def _rows_of(self, measurement: str) -> list[dict[str, Any]]:
        item = self.measurements.get(measurement)
        if item is None:
            measured = ", ".join(self.measurements) or "nothing"
            raise InputError(f"'{measurement}' was not measured in this run; measured: {measured}")
        of_quantity = ("title", "unit", "worse", "compare", "chance")
        return [
            {
                "variant": variant, "group": group, "quantity": quantity.name,
                **{key: getattr(quantity, key) for key in of_quantity},
                **by_quantity[quantity.name].model_dump(exclude={"effective"}),
            }
            for variant, groups in item.found.items() for group, by_quantity in groups.items()
            for quantity in item.quantities if quantity.name in by_quantity
        ]  # fmt: skip

    def language(self, code: str) -> Language:
        """Return what is known of a language, by the recipe or at all."""
        corpus = self.recipe.get("corpus")
        said = corpus.get(code) if isinstance(corpus, dict) else None
        return language(code, said if isinstance(said, dict) else None)

    def guessing(self, code: str | None = None) -> float | None:
        """Return the logarithm of the ratio to the base's perplexity at which a model guesses all tokens alike.

        In a language, or over all of them; None where the size of the vocabulary is not known, or where the base
        itself is no better, so that no variant can be worse for it.
        """
        if not self.model.vocabulary or "base" not in self.summary:
            return None
        base = self.summary["base"].log_geometric_mean_perplexity
        guess = math.log(self.model.vocabulary) - (
            base if code is None else self.perplexity["base"][code].log_perplexity
        )
        return guess if guess > 0 else None

    def unknown_languages(self) -> list[str]:
        """Return the languages in which the base itself is no better than a uniform guess."""
        if not self.model.vocabulary:
            return []
        most = math.log(self.model.vocabulary)
        return [code for code, item in self.perplexity.get("base", {}).items() if not item.log_perplexity < most]

    def draws(self, variant: str) -> list[str]:
        """Return the draws of a control that a variant stands for (see `measured_alone`), or the variant alone."""
        for sweep in self.sweeps.values():
            if variant == sweep.control:
                return [point for point in sweep.points if point in self.perplexity] or [variant]
        return [variant]

    def is_range(self, variant: str) -> bool:
        """True if a variant stands for several draws, so that bounds are their smallest and their largest."""
        return len(self.draws(variant)) > 1

    def mean(self, variant: str) -> Summary:
        """Return a variant over its languages; of a control that was drawn several times the mean of its draws."""
        draws = [self.summary[draw] for draw in self.draws(variant)]
        if len(draws) == 1:
            return draws[0]
        log = math.fsum(draw.log_geometric_mean_perplexity for draw in draws) / len(draws)
        ratios = [draw.ratio_to_base for draw in draws]
        return Summary(
            geometric_mean_perplexity=exponential(log),
            log_geometric_mean_perplexity=log,
            ratio_to_base=exponential(log - self.summary["base"].log_geometric_mean_perplexity),
            low=min(ratios),
            high=max(ratios),
        )

    def figure(self, kind: str, variant: str, group: str | None, quantity: str) -> Figure | None:
        """Return what a measurement told of a variant in a group, or over all; see `MeasurementReport.averaged`."""
        return self.measurements[kind].averaged(self.draws(variant), group, quantity)

    def averaged(self, variant: str) -> dict[str, Perplexity]:
        """Return a variant's perplexities; of a control that was drawn several times the geometric means.

        Their `low` and `high` are then the smallest and the largest ratio of a draw.
        """
        draws = [self.perplexity[point] for point in self.draws(variant)]
        if len(draws) == 1:
            return draws[0]
        means = {}
        for code, first in draws[0].items():
            logs = [draw[code].log_perplexity for draw in draws]
            ratios = [exponential(log - self.perplexity["base"][code].log_perplexity) for log in logs]
            log = math.fsum(logs) / len(logs)
            means[code] = first.model_copy(update={
                "nll": log * first.tokens, "log_perplexity": log, "perplexity": exponential(log),
                "bits_per_byte": math.fsum(draw[code].bits_per_byte for draw in draws) / len(draws),
                "low": min(ratios), "high": max(ratios),
            })  # fmt: skip
        return means

    def label(self, variant: str) -> str:
        """Return a variant's name for people; that of a sweep's point says its values, or how often it was drawn."""
        for name, sweep in self.sweeps.items():
            if variant == sweep.control and len(sweep.points) > 1:
                return f"{name}, {len(sweep.points)} seeds"
        return self.named(variant)

    def named(self, variant: str) -> str:
        """Return the name for people of this very variant: that of a sweep's point says its values."""
        for name, sweep in self.sweeps.items():
            if variant in sweep.points:
                values = zip(sweep.axes, sweep.points[variant], strict=True)
                return f"{name}, " + ", ".join(f"{axis} {coordinate(value)}" for axis, value in values)
        return variant

    @property
    def passed(self) -> bool:
        """True if every expectation held."""
        return all(expectation.passed for expectation in self.expectations)

    @property
    def measured_alone(self) -> list[str]:
        """The measured variants that are no points of a sweep; of one over seeds alone, the first."""
        points = {point for sweep in self.sweeps.values() for point in sweep.points}
        controls = {sweep.control for sweep in self.sweeps.values()}
        return [name for name in self.perplexity if name != "base" and name not in points - controls]

    @property
    def has_intervals(self) -> bool:
        """True if ratios were measured with an interval."""
        return any(item.low is not None for row in self.perplexity.values() for item in row.values())

    def only(self, variants: Sequence[str]) -> Report:
        """Return the report with the measurements of the base and of some variants, with all their draws, only."""
        chosen = {"base", *(point for name in variants if name in self.perplexity for point in self.draws(name))}

        def narrowed(entry: Any, *keys: str) -> dict[str, Any]:
            return {key: {name: of for name, of in getattr(entry, key).items() if name in chosen} for key in keys}

        measurements = {
            kind: item.model_copy(update=narrowed(item, "found", "overall")) for kind, item in self.measurements.items()
        }
        return self.model_copy(update={**narrowed(self, "perplexity", "summary"), "measurements": measurements})

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a `report.json`, or that of an output folder.

        Raises:
            InputError: it is missing, or no report that this surgeon reads.
        """
        path = Path(os.path.expanduser(path))
        path = path / "report.json" if path.is_dir() else path
        try:
            return cls.model_validate(read_object(path))
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); name the output folder of `surgeon apply` or `surgeon cut`"
            ) from None
        except ValueError as error:
            raise InputError(
                f"{path}: not a report that this surgeon reads ({str(error).splitlines()[0]}); run `apply` again"
            ) from None
