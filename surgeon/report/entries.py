"""The parts of a report: plain data that goes to JSON and back, of regions, variants, measurements and expectations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from surgeon.model.results import Quantity, exponential

HELD = ("freeze", "train_only")  # what is done to no weight


class Entry(BaseModel):
    """Base of all parts of a report; inf and nan are written as the strings "Infinity" and "NaN", which JSON lacks."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings", extra="forbid")


class Perplexity(Entry):
    """One language under one model. `nll` in nats, summed over `tokens` predicted tokens of `bytes` of text.

    `low` and `high` bound its ratio to the base (measure/uncertainty.py); None for the base itself, and where the text
    is one sentence and one window only.
    """

    nll: float
    tokens: int
    bytes: int
    perplexity: float
    log_perplexity: float
    bits_per_byte: float
    low: float | None = None
    high: float | None = None


class Summary(Entry):
    """A model over all languages; ratios are of geometric means, `log` the natural logarithm of the mean.

    `low` and `high` bound the ratio (measure/uncertainty.py); None for the base itself, and where some language's text
    is one sentence and one window only.
    """

    geometric_mean_perplexity: float
    log_geometric_mean_perplexity: float
    ratio_to_base: float
    low: float | None = None
    high: float | None = None


class Figure(Entry):
    """What was measured of a model in one group (a language, or a task), over `pieces` independent pieces of it.

    They say as much as `effective` pieces of equal weight. `change` is the ratio or difference to the base, as the
    quantity says; None for the base itself, and where the value is a comparison with the base already. `low` and `high`
    bound the change, or else the value (measure/uncertainty.py); None where one piece alone was measured. `p` is the
    probability of a change as large by chance. It is `beyond_chance` if it stays among all groups of this variant
    (measure/uncertainty.py).
    """

    value: float
    pieces: int
    effective: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    beyond_chance: bool | None = None


class MeasurementReport(Entry):
    """One kind of measurement: its quantities, and its figures by variant, group and quantity.

    `by` says what the groups are; `overall` are means over them (geometric ones where the comparison is a ratio).
    `remarks` say more in words, by variant and group.
    """

    title: str
    by: str
    quantities: list[Quantity]
    found: dict[str, dict[str, dict[str, Figure]]]
    overall: dict[str, dict[str, Figure]]
    remarks: dict[str, dict[str, str]] = {}

    def averaged(self, draws: Sequence[str], group: str | None, quantity: str) -> Figure | None:
        """Return a figure of a group, or over all; of a control that was drawn several times, the mean.

        Its `low` and `high` are then the smallest and the largest change of a draw, or its value where there is none.
        The mean is a geometric one where the comparison is a ratio.
        """
        rows = [
            self.overall.get(name, {}) if group is None else self.found.get(name, {}).get(group, {}) for name in draws
        ]
        figures = [row[quantity] for row in rows if quantity in row]
        if len(figures) < 2:
            return next(iter(figures), None)
        is_ratio = any(item.name == quantity and item.compare == "ratio" for item in self.quantities)

        def mean(values: Sequence[float]) -> float:
            if is_ratio and min(values) > 0:
                return exponential(math.fsum(map(math.log, values)) / len(values))
            return math.fsum(values) / len(values)

        values = [figure.value for figure in figures]
        changes = [figure.change for figure in figures if figure.change is not None]
        ends, change = changes or values, mean(changes) if changes else None
        return Figure(value=mean(values), pieces=figures[0].pieces, change=change, low=min(ends), high=max(ends))


class PartReport(Entry):
    """A variant's cut done in one layer, or one role, alone: how many entries, and the model's mean perplexity.

    `ratio_to_base` is that of geometric means over the languages, `nats` its logarithm, `low` and `high` bound it.
    """

    entries: int
    ratio_to_base: float
    nats: float
    low: float | None = None
    high: float | None = None


class PartsReport(Entry):
    """The parts of a variant's cut, by layer or by role, in the order of the model.

    `sum_nats` adds up their nats, with an interval; `whole_nats` are those of the whole cut.
    """

    parts: dict[str, PartReport]
    sum_nats: float
    sum_low: float | None = None
    sum_high: float | None = None
    whole_nats: float


class PassageReport(Entry):
    """The beginning of a language's text: its tokens, the numbers of those that begin a word, and their losses in nats.

    `losses` are those of each model; None where the loss is not a number.
    """

    tokens: list[str]
    words: list[int]
    losses: dict[str, list[float | None]]


class OverSeeds(Entry):
    """What became of points of a sweep that differ in their seed alone; `values` are theirs on the other axes.

    `mean` is the geometric mean of their ratios to the base, `low` and `high` the smallest and the largest.
    """

    values: list[Any]
    points: list[str]
    mean: float
    low: float
    high: float


class SweepReport(Entry):
    """A grid: the values of each axis, and the variant at each point with its value on every axis.

    A sweep with an axis `seed` has its points together `over_seeds`.
    """

    axes: dict[str, list[Any]]
    points: dict[str, list[Any]]
    over_seeds: list[OverSeeds] = []

    @property
    def control(self) -> str | None:
        """The draw that stands for all, where the points differ in their seed alone: they are one control then."""
        return next(iter(self.points)) if list(self.axes) == ["seed"] else None


class Expectation(Entry):
    """A bound of the recipe and what came out: the figure itself, or a bound of its interval, as `at` says.

    `ratio` is that of perplexities. With a `measurement` it is None, `value` is what came out, and `quantity` says
    what that is; nan, and no `quantity`, if nothing of the kind was found.
    """

    variant: str
    language: str | None
    ratio_at_least: float | None
    ratio_at_most: float | None
    ratio: float | None
    passed: bool
    at: Literal["point", "lower", "upper"] = "point"
    measurement: str | None = None
    quantity: Quantity | None = None
    group: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    change_at_least: float | None = None
    change_at_most: float | None = None
    value: float | None = None


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

    The kinds in `HELD` do nothing to the weights: they are what a bundle beside them tells trainers.
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

    @property
    def done(self) -> list[StepReport]:
        """The steps that change its weights."""
        return [step for step in self.steps if step.kind not in HELD]

    @property
    def told(self) -> list[StepReport]:
        """The steps that change nothing: they are for trainers."""
        return [step for step in self.steps if step.kind in HELD]

    @property
    def regions(self) -> list[str]:
        """The regions that its operations act on; without any, the region that trainers heed."""
        return [step.region for step in self.done or self.told]

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
