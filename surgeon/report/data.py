"""The report of a run as data: `report.json` is this and nothing else; everything shown is rendered from it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import model_validator

from surgeon.checkpoint.plain_json import read_object
from surgeon.errors import InputError
from surgeon.model.results import PERPLEXITY, Continuation, exponential
from surgeon.notebook import table, view
from surgeon.report.entry import Entry
from surgeon.report.measured_entries import (
    Expectation,
    MeasurementReport,
    PartsReport,
    PassageReport,
    Perplexity,
    Summary,
    SweepReport,
)
from surgeon.report.region_entries import OverlapReport, RegionReport
from surgeon.report.words import coordinate, interval, number
from surgeon.text.languages import Language, language

SCHEMA_VERSION = 1
_COLUMNS = (
    "variant", "language", "name", "script", "family", "nll", "tokens", "bytes", "perplexity", "bits_per_byte", "ratio",
    "low", "high",
)  # fmt: skip


class EncodingReport(Entry):
    """What it took to encode a variant's new values in the format of its quantized weights.

    `blocks` are those of which an entry was encoded anew; of them `rescaled` got another scale. `rounded` entries hold
    another value than was asked for, or than they had; `largest` is the largest of these errors, `norm` their L2 norm.
    """

    blocks: int
    rescaled: int
    rounded: int
    largest: float
    norm: float


class StepReport(Entry):
    """One operation on one region; `settings` are its other keys in the recipe.

    The kinds `freeze` and `train_only` do nothing to the weights: they are what a bundle beside them tells trainers.
    """

    kind: str
    region: str
    settings: dict[str, Any] = {}


class VariantReport(Entry):
    """A variant, written or not; `path` is set if it was written.

    `operations` says in words what was done, `steps` says the same as data.

    `entries` counts the entries that its operations act on, `changed` those whose bits are others afterwards (zeroing
    zeros changes nothing), `norm_removed` is the L2 norm of the difference over all of them. Stored copies of a tied
    weight count once. None in reports of before these were counted. `encoding` is there for quantized weights: what
    encoding new values added beside that.
    """

    operations: list[str]
    steps: list[StepReport] = []
    entries: int
    changed: int | None = None
    norm_removed: float | None = None
    encoding: EncodingReport | None = None
    written: bool
    path: str | None = None
    bytes: int | None = None
    reused: bool = False

    @model_validator(mode="before")
    @classmethod
    def _steps_of_earlier_reports(cls, data: Any) -> Any:
        """Reports of before there were steps have the words alone: the kind, and the region."""
        if not isinstance(data, dict) or data.get("steps") or not isinstance(data.get("operations"), list):
            return data
        steps = []
        for line in (str(line).replace("train only ", "train_only ", 1) for line in data["operations"]):
            kind, _, region = line.partition(" ")
            steps += [{"kind": kind, "region": region}] if region else []
        return {**data, "steps": steps}


class PushReport(Entry):
    """Where a variant was pushed to; `sent`, `copied` (by the Hub itself), `removed`, `unchanged` count files."""

    address: str
    url: str
    commit: str
    sent: int
    copied: int
    removed: int
    unchanged: int


class ModelReport(Entry):
    """The source model. `content_sha256` is None if only parts of it were fetched from the Hub; `vocabulary` counts the
    tokens that it chooses among.

    `left_out` says which of its tensors are no weights of the text model, and so were left as they are. `senses`
    (vision, audio) is what it takes in beside text, of which neither scores nor measurements say anything.
    `files_left_out` says of files beside its weights why they are not read, or do not travel with variants; `notes`
    where its index or its config says other things than its weights.
    """

    name: str
    revision: str | None
    model_type: str | None
    parameters: int
    tensors: int
    shards: int
    bytes: int
    content_sha256: str | None
    vocabulary: int | None = None
    left_out: list[str] = []
    senses: list[str] = []
    files_left_out: dict[str, str] = {}
    notes: list[str] = []


class ScoreReport(Entry):
    """How much text one score was computed on, in one language."""

    kind: str
    language: str
    sequences: int
    tokens: int


class Report(Entry):
    """Everything that one `apply` found. `parts` are by variant, and by what its cut was taken apart by."""

    schema_version: int = SCHEMA_VERSION
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
                known, base = self.language(code), self.perplexity["base"][code]
                found = item.model_dump(include=set(_COLUMNS))
                ratio = exponential(item.log_perplexity - base.log_perplexity)
                named = {"name": known.name, "script": known.script, "family": known.family}
                rows.append({"variant": variant, "language": code, **named, **found, "ratio": ratio})
        return pandas.DataFrame(rows, columns=list(_COLUMNS))

    def _rows_of(self, measurement: str) -> list[dict[str, Any]]:
        item = self.measurements.get(measurement)
        if item is None:
            there = ", ".join(self.measurements) or "nothing"
            raise InputError(f"'{measurement}' was not measured in this run; measured: {there}")
        return [
            {
                "variant": variant, "group": group, "quantity": quantity.name,
                "title": quantity.title, "unit": quantity.unit, "worse": quantity.worse, "compare": quantity.compare,
                "chance": quantity.chance,
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

    def averaged(self, variant: str) -> dict[str, Perplexity]:
        """Return a variant's perplexities; of a control that was drawn several times the geometric means.

        Their `low` and `high` are then the smallest and the largest ratio of a draw.
        """
        draws = [self.perplexity[point] for point in self.draws(variant)]
        return {code: self._mean(code, [draw[code] for draw in draws]) for code in draws[0]}

    def _mean(self, code: str, found: Sequence[Perplexity]) -> Perplexity:
        if len(found) == 1:
            return found[0]
        log, base = math.fsum(item.log_perplexity for item in found) / len(found), self.perplexity["base"][code]
        ratios = [exponential(item.log_perplexity - base.log_perplexity) for item in found]
        return found[0].model_copy(update={
            "nll": log * found[0].tokens, "log_perplexity": log, "perplexity": exponential(log),
            "bits_per_byte": math.fsum(item.bits_per_byte for item in found) / len(found),
            "low": min(ratios), "high": max(ratios),
        })  # fmt: skip

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
        kept = {"base", *(point for name in variants if name in self.perplexity for point in self.draws(name))}
        return self.model_copy(
            update={
                "perplexity": {name: row for name, row in self.perplexity.items() if name in kept},
                "summary": {name: summary for name, summary in self.summary.items() if name in kept},
                "measurements": {
                    kind: item.model_copy(
                        update={
                            key: {name: row for name, row in getattr(item, key).items() if name in kept}
                            for key in ("found", "overall")
                        }
                    )
                    for kind, item in self.measurements.items()
                },
            }
        )

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
