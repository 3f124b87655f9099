"""Tables for people: the plan, the regions, perplexity per language, expectations."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from surgeon.model.results import Stopped, exponential
from surgeon.report.data import Expectation, Generation, OverSeeds, Perplexity, PushReport, RegionReport, Report
from surgeon.report.story import caveat, sentence, tell
from surgeon.report.words import (
    bounds,
    coordinate,
    interval,
    number,
    percent,
    size,
    stopped_note,
)
from surgeon.text.languages import language_name
from surgeon.visible import visible, visible_lines

INTERVAL = "95 %"  # the heading of a column of intervals
_NARROWEST = 16  # characters that a column of words may be folded to


def _style(ratio: float) -> str:
    if math.isnan(ratio) or ratio >= 10:
        return "bold red"
    return "yellow" if ratio >= 1.05 else "dim" if ratio <= 1.01 else ""


class Rows(Table):
    """A table whose cells show any text as it is: no markup in it counts, and nothing in it moves the cursor.

    Its numbers never break: where the screen is too narrow for it, there is a line for each cell instead.
    """

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        """Add a row; text comes through `visible`."""
        shown = (Text(visible(cell)) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, style=style, end_section=end_section)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = Measurement.get(console, options.update(max_width=10_000), self).maximum
        spare = sum(
            max(max(Measurement.get(console, options, cell).maximum for cell in column.cells) - _NARROWEST, 0)
            for column in self.columns
            if not column.no_wrap and column._cells
        )
        fits = whole - spare <= options.max_width
        yield from super().__rich_console__(console, options) if fits else (self._stacked(),)

    def _stacked(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        heads = [str(column.header) for column in self.columns]
        for cells in zip(*(column.cells for column in self.columns), strict=True):
            grid.add_row(cells[0], "", style="bold")
            for head, cell in zip(heads[1:], cells[1:], strict=True):
                grid.add_row(Text(f"  {head}", style="dim"), cell)
        return Group(Text(str(self.title), style="bold"), grid, Text(""))


class Pairs(Table):
    """A table without lines, for names and what they mean; any text in it is shown as it is."""

    def __init__(self) -> None:
        super().__init__(box=None, show_header=False, show_edge=False, pad_edge=False, padding=(0, 2))
        self.collapse_padding = True

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        """Add a row; text comes through `visible`."""
        shown = (Text(visible(cell)) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, style=style, end_section=end_section)


def told(*lines: str, style: str = "") -> Text:
    """Return lines of text, each of which stays one line whatever stands in it."""
    return Text("\n".join(map(visible, lines)), style=style)


def table(title: str, *columns: str, words: Collection[str] = ()) -> Rows:
    """Make an empty table in our style; all columns but the first, and those of `words`, are numbers."""
    heading = Text(visible(title))
    result = Rows(title=heading, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False)
    for i, column in enumerate(columns):
        word = i == 0 or column in words
        head = Text(visible(column))
        result.add_column(head, justify="left" if word else "right", overflow="fold", no_wrap=not word)
    return result


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Draw values as blocks of eight heights, from the lowest to the highest; all alike are drawn at half height.

    More values than `width` are drawn as means of neighbours.
    """
    step = math.ceil(len(values) / width)
    values = [math.fsum(values[i : i + step]) / len(values[i : i + step]) for i in range(0, len(values), step)]
    low, high = min(values), max(values)
    if high - low <= 1e-3 * abs(high):
        return "\u2584" * len(values)
    return "".join(chr(0x2581 + round(7 * (value - low) / (high - low))) for value in values)


def regions_table(report: Report) -> Table:
    """Show the regions: entries, density, and where entries crowd most."""
    rows = table("Regions", "region", "entries", "of", "share", "fullest 1 % of lines hold")
    for name, region in report.regions.items():
        rows.add_row(name, f"{region.entries:,}", f"{region.numel:,}", percent(region.fraction), _crowding(region))
    return rows


def _crowding(region: RegionReport) -> str:
    """Name the role whose entries crowd most into few rows or columns, and the share they hold; by chance, too."""
    if not region.spreads:
        return "-"
    at = region.spread_at.index(0.01)
    lines = [(getattr(s, axis)[at], role, axis) for role, s in region.spreads.items() for axis in ("rows", "columns")]
    share, role, axis = max(lines)
    told = f"{role} {axis} {percent(share)}"
    chance = region.chance.get(role)
    return told if chance is None else f"{told} (by chance {percent(getattr(chance, axis)[at])})"


def variants_table(report: Report) -> Table:
    """Show what was done to each variant that is no point of a sweep, and what became of the perplexity."""
    rows = table("Variants", "variant", "entries", "changed", "norm removed", "x base", INTERVAL)
    points = {point for sweep in report.sweeps.values() for point in sweep.points}
    for name, variant in report.variants.items():
        if name in points:
            continue
        changed = "-" if variant.changed is None else f"{variant.changed:,}"
        norm = "-" if variant.norm_removed is None else f"{variant.norm_removed:.4g}"
        summary = report.summary.get(name)
        ratio = Text("-") if summary is None else _ratio(summary.ratio_to_base)
        bounds_of = "-" if summary is None else interval(summary.low, summary.high)
        rows.add_row(name, f"{variant.entries:,}", changed, norm, ratio, bounds_of)
    for name, sweep in report.sweeps.items():
        for group in sweep.over_seeds if len(sweep.axes) == 1 else ():
            rows.add_row(*_over_seeds_cells(report, name, group))
    return rows


def _over_seeds_cells(report: Report, name: str, group: OverSeeds) -> list[RenderableType]:
    """Show a control drawn with several seeds: mean norm and ratio, and the ratio's range instead of an interval."""
    drawn = [report.variants[point] for point in group.points]
    norms = [item.norm_removed for item in drawn if item.norm_removed is not None]
    return [
        f"{name}, {len(drawn)} seeds",
        _extent([item.entries for item in drawn]),
        _extent([item.changed for item in drawn if item.changed is not None]),
        f"{sum(norms) / len(norms):.4g}" if norms else "-",
        _ratio(group.mean),
        f"{interval(group.low, group.high)} (range)",
    ]


def _extent(counts: Sequence[int]) -> str:
    if not counts:
        return "-"
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _ratio(ratio: float) -> Text:
    return Text(number(ratio), style=_style(ratio))


@dataclass(frozen=True)
class Fitting:
    """Shows the first of several renderings that is no wider than the screen, or else the last."""

    choices: Sequence[RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for choice in self.choices[:-1]:
            if Measurement.get(console, options.update(max_width=10_000), choice).maximum <= options.max_width:
                yield choice
                return
        yield self.choices[-1]


def perplexity_view(report: Report, variants: Sequence[str]) -> Fitting:
    """Show perplexity per language: the base, then each of some variants with its ratio to the base.

    On a narrow screen the ratios alone, and then in as many tables as it takes.
    """
    whole = [perplexity_table(report, variants, brief) for brief in (False, True)]
    split = [[variants[i : i + count] for i in range(0, len(variants), count)] for count in (6, 4, 3, 2, 1)]
    groups = [Group(*(perplexity_table(report, part, True) for part in parts)) for parts in split]
    return Fitting([*whole, *groups])


def perplexity_table(report: Report, variants: Sequence[str], brief: bool) -> Table:
    """Show the base and some variants; `brief` leaves out the variants' perplexities and keeps their ratios."""
    found = {name: report.perplexity[name] for name in ("base", *variants)}
    rows = _perplexity_rows(found, "base", brief)
    rows.add_section()
    mean: list[RenderableType] = [
        Text("geometric mean", style="bold"), number(report.summary["base"].geometric_mean_perplexity)
    ]  # fmt: skip
    for name in variants:
        summary = report.summary[name]
        value = "" if brief else f"{number(summary.geometric_mean_perplexity)}  "
        mean.append(Text(f"{value}x{number(summary.ratio_to_base)}", style=_style(summary.ratio_to_base)))
    rows.add_row(*mean)
    return rows


def sweep_table(report: Report, name: str) -> Table:
    """Show a sweep: a line per point with its value on every axis and what became of the perplexity."""
    sweep = report.sweeps[name]
    rows = table(f"Sweep {name}", *sweep.axes, "entries", "perplexity", "x base", INTERVAL)
    mean = number(report.summary["base"].geometric_mean_perplexity)
    rows.add_row("base", *[""] * (len(sweep.axes) - 1), "", mean, "", "", style="dim", end_section=True)
    points = list(sweep.points.items())
    for i, (point, values) in enumerate(points):
        summary = report.summary[point]
        ratio = _ratio(summary.ratio_to_base)
        rows.add_row(
            *map(coordinate, values), f"{report.variants[point].entries:,}", number(summary.geometric_mean_perplexity),
            ratio, interval(summary.low, summary.high),
            end_section=i + 1 < len(points) and len(values) > 1 and points[i + 1][1][0] != values[0],
        )  # fmt: skip
    return rows


def generations_view(generations: Mapping[str, Sequence[Generation]], models: Sequence[str]) -> Group:
    """Show what models put after each prompt, one below the other."""
    parts: list[RenderableType] = []
    for i, first in enumerate(generations[models[0]]):
        rows = Pairs()
        rows.add_column(style="dim", overflow="fold", max_width=24)
        rows.add_column(overflow="fold")
        for model in models:
            found = generations[model][i]
            note = stopped_note(found.stopped)
            rows.add_row(model, Text.assemble(visible(found.continuation), (f" {note}" if note else "", "dim")))
        parts += [Text(f'"{visible(first.prompt)}" goes on:', style="bold"), rows, Text("")]
    return Group(*parts)


@dataclass(frozen=True)
class SideBySide:
    """Answers of several models to one prompt: columns beside each other, or below where there is no room.

    `answers`: by model, the text and why it stopped.
    """

    prompt: str
    answers: Mapping[str, tuple[str, Stopped]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        said = {
            name: Text.assemble(visible(text), (f" {stopped_note(stopped)}" if stopped_note(stopped) else "", "dim"))
            for name, (text, stopped) in self.answers.items()
        }
        yield Text(f'"{visible(self.prompt)}"', style="bold")
        beside = options.max_width >= _NARROWEST * 1.5 * len(said)
        grid = Table.grid(padding=(0, 2), expand=beside)
        for _ in said if beside else range(2):
            grid.add_column(ratio=1 if beside else None, overflow="fold")
        if beside:
            grid.add_row(*(Text(name, style="dim") for name in said))
            grid.add_row(*said.values())
        else:
            for name, text in said.items():
                grid.add_row(Text(name, style="dim"), text)
        yield grid
        yield Text("")


def measures_view(found: Mapping[str, Mapping[str, Perplexity]], said: Mapping[str, Sequence[Generation]]) -> Group:
    """Show what `verify` found: perplexity per language, bits per byte of the checkpoint, and continuations."""
    rows = _perplexity_rows(found, next(iter(found)))
    last = list(found)[-1]
    rows.add_column("bits/byte", justify="right")
    rows.columns[-1]._cells = [f"{item.bits_per_byte:.3f}" for item in found[last].values()]
    return Group(rows, generations_view(said, list(said))) if said else Group(rows)


def _perplexity_rows(found: Mapping[str, Mapping[str, Perplexity]], first: str, brief: bool = False) -> Table:
    others = [name for name in found if name != first]
    rows = table("Perplexity", "language", first, *others)
    for language, base in found[first].items():
        cells: list[RenderableType] = [language_name(language), number(base.perplexity)]
        cells += [_cell(found[name][language], base, brief) for name in others]
        rows.add_row(*cells)
    return rows


def _cell(measured: Perplexity, base: Perplexity, brief: bool) -> Text:
    difference = measured.log_perplexity - base.log_perplexity
    ratio = exponential(difference)
    value = "" if brief else f"{number(measured.perplexity)}  "
    return Text(f"{value}x{number(ratio)}", style=_style(ratio))


def expectation_line(item: Expectation) -> Text:
    """Say of one expectation whether it held."""
    where = f" in {language_name(item.language)}" if item.language else ""
    mark, style = ("held  ", "green") if item.passed else ("FAILED", "bold red")
    ratio = "nan" if math.isnan(item.ratio) else f"{item.ratio:.4g}"
    return Text.assemble(
        (mark, style),
        f"  {visible(item.variant + where)}: ratio {ratio}, expected {bounds(item.ratio_at_least, item.ratio_at_most)}",
    )


def report_view(report: Report, output: str, details: bool = False) -> Group:
    """Show a whole report; with `details`, the points of sweeps per language and by what they say, too."""
    parts: list[RenderableType] = []
    if report.perplexity and report.variants:
        parts += [Text(sentence(report, tell(report)), style="bold"), Text(caveat(report) or "", style="dim")]
    parts.append(regions_table(report))
    if report.variants:
        parts.append(variants_table(report))
    if report.scores:
        samples = (f"{item.language} {item.sequences} ({item.tokens:,} tokens)" for item in report.scores)
        sample = ", ".join(dict.fromkeys(samples))  # scores of two kinds mostly use the same text
        parts.append(told(f"Scored on sequences: {sample}.", style="dim"))
    if report.perplexity:
        shown = [name for name in report.perplexity if name != "base"] if details else report.measured_alone
        if shown or not report.sweeps:
            parts.append(perplexity_view(report, shown))
        parts += [sweep_table(report, name) for name in report.sweeps]
        method = report.method
        parts.append(
            told(
                f"Token-weighted over at most {method['tokens']} tokens a language; window {method['window']}, "
                f"stride {method['stride']}, BOS {method['bos']}, {method['precision']} arithmetic. x = ratio to base.",
                style="dim",
            )
        )
        if report.generations:
            parts += [Text(""), generations_view(report.generations, ["base", *shown])]
    parts += [expectation_line(item) for item in report.expectations]
    written = [name for name, variant in report.variants.items() if variant.written]
    parts.append(Text(""))
    for name in written:
        variant = report.variants[name]
        again = " (already complete)" if variant.reused else ""
        parts.append(told(f"wrote {variant.path} ({size(variant.bytes or 0)}){again}"))
    parts.append(told(f"report {output}/report.html, {output}/report.json"))
    parts += [told(pushed_line(name, item)) for name, item in report.pushed.items()]
    return Group(*parts)


def pushed_line(name: str, item: PushReport) -> str:
    """Say where a variant was pushed to, and what that took."""
    if not item.sent and not item.copied and not item.removed:
        return f"{name} is already at {item.address}: {item.url}"
    counts = [f"{item.sent} files sent", f"{item.copied} copied by the Hub", f"{item.unchanged} already there"]
    counts += [f"{item.removed} of an earlier push removed"] if item.removed else []
    return f"pushed {name} to {item.address} ({', '.join(counts)}): {item.url}"


@dataclass(frozen=True)
class _Scrubbed:
    """The last gate: whatever a view holds, what is printed moves no cursor and speaks to no terminal."""

    view: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.view, options):
            yield segment if segment.control else Segment(visible_lines(segment.text), segment.style)


def render(console: Console, view: RenderableType) -> None:
    """Print; into a pipe without colours, padding or the width of a screen."""
    view = _Scrubbed(view)
    if console.is_terminal:
        console.print(view, highlight=False)
        return
    text = StringIO()
    Console(file=text, width=max(console.width, 120), no_color=True, highlight=False).print(view)
    console.file.write("\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n")
