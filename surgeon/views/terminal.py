"""Tables for people: the plan, the regions, perplexity per language, expectations."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from textwrap import fill

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from surgeon.checkpoint.store import cache_folder
from surgeon.model.results import Continuation, Stopped
from surgeon.report.data import Report
from surgeon.report.entries import Expectation, Perplexity, PushReport
from surgeon.report.expected import outcome
from surgeon.report.grid import Cell, Grid
from surgeon.report.parts import part_lines
from surgeon.report.regions import CROWDS, regions_table
from surgeon.report.sentences import caveat, evidence, headline, measured_lines, no_intervals, too_little_text
from surgeon.report.story import tell
from surgeon.report.tables import EDITS, languages_table, own_table, summary_table, sweep_table, variants_table
from surgeon.report.words import size, stopped_note
from surgeon.text.languages import Language, language
from surgeon.visible import visible, visible_lines

_HEAD = 14  # characters of a head of several words that stand on one line
_NARROWEST = 14  # characters that a column of words may be folded to: a long word


_TONES = {"much-worse": "bold red", "worse": "yellow", "same": "dim"}


class Plain(Table):
    """A table whose cells show any text as it is: no markup in it counts, and nothing in it moves the cursor."""

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        """Add a row; text comes through `visible`."""
        shown = (Text(visible(cell)) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, style=style, end_section=end_section)


class Rows(Plain):
    """A table whose numbers never break.

    Where the screen is too narrow for it, columns of `spare` are left out, from the last of these on; where it still
    is, there is a line for each cell instead.
    """

    spare: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole, spare = self.columns, list(self.spare)
        while not (fits := self._fits(console, options)) and spare:
            left_out = spare.pop()
            self.columns = [column for column in self.columns if str(column.header) != left_out]
        self.columns = self.columns if fits else whole
        yield from super().__rich_console__(console, options) if fits else (self._stacked(),)
        self.columns = whole

    def _fits(self, console: Console, options: ConsoleOptions) -> bool:
        whole = Measurement.get(console, options.update(max_width=10_000), self).maximum
        folds = sum(
            max(max(Measurement.get(console, options, cell).maximum for cell in column.cells) - _NARROWEST, 0)
            for column in self.columns
            if not column.no_wrap and column._cells
        )
        return whole - folds <= options.max_width

    def _stacked(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        heads = [str(column.header) for column in self.columns]
        for cells in zip(*(column.cells for column in self.columns), strict=True):
            grid.add_row(cells[0], "", style="bold")
            for head, cell in zip(heads[1:], cells[1:], strict=True):
                if str(cell):
                    grid.add_row(Text(f"  {head}", style="dim"), cell)
        return Group(Text(str(self.title), style="bold"), grid, Text(""))


class Pairs(Plain):
    """A table without lines, for names and what they mean."""

    def __init__(self) -> None:
        super().__init__(box=None, show_header=False, show_edge=False, pad_edge=False, padding=(0, 2))
        self.collapse_padding = True


def told(*lines: str, style: str = "") -> Text:
    """Return lines of text, each of which stays one line whatever stands in it."""
    return Text("\n".join(map(visible, lines)), style=style)


def table(title: str, *columns: str, words: Collection[str] = (), spare: Sequence[str] = ()) -> Rows:
    """Make an empty table in our style; all columns but the first, and those of `words`, are numbers."""
    heading = Text(visible(title))
    result = Rows(title=heading, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False)
    result.spare = spare
    for i, column in enumerate(columns):
        word = i == 0 or column in words
        head = Text(visible_lines(column))
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


def grid_table(grid: Grid, brief: bool = False, head_width: int = 80) -> Rows:
    """Show a table of the report; `brief` leaves out what stands before ratios, longer heads take several lines."""
    # In a list, since an axis of a sweep may be called as another column is.
    heads = [fill(_plainly(head), head_width, break_on_hyphens=False, break_long_words=False) for head in grid.heads]
    words = [shown for head, shown in zip(grid.heads, heads, strict=True) if head in grid.words]
    rows = table(grid.title, *heads, words=words)
    for row in grid.rows:
        rows.add_row(*(_cell(cell, brief) for cell in row.cells), end_section=row.ends)
    if grid.foot is not None:
        rows.add_section()
        rows.add_row(*(_cell(cell, brief) for cell in grid.foot))
    return rows


def _cell(cell: Cell, brief: bool) -> Text:
    before = "" if brief or not cell.before else f"{cell.before}  "
    return Text(_plainly(visible(before + cell.text)), style=_TONES.get(cell.tone, ""))


def _plainly(text: str) -> str:
    return text.replace("×", "x").replace("\u00a0", " ")


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

    def shown(part: Sequence[str], brief: bool) -> Rows:
        measured = {name: report.averaged(name) for name in ("base", *part)}
        return grid_table(languages_table(measured, "base", report).columns(*range(2 + len(part))), brief)

    many = len(variants)
    counts = [math.ceil(many / math.ceil(many / most)) for most in (6, 4, 3, 2, 1)] if many else []  # tables alike
    split = [[variants[i : i + count] for i in range(0, many, count)] for count in dict.fromkeys(counts)]
    groups = [Group(*(shown(part, True) for part in parts)) for parts in split]
    return Fitting([shown(variants, False), shown(variants, True), *groups])


def _said(text: str, stopped: Stopped) -> Text:
    note = stopped_note(stopped)
    return Text.assemble(visible(text), (f" {note}" if note else "", "dim"))


def generations_view(
    generations: Mapping[str, Sequence[Continuation]], models: Sequence[str], named: Callable[[str], str] = str
) -> Group:
    """Show what models put after each prompt, one below the other; `named` returns a model's name for people."""
    parts: list[RenderableType] = []
    for answers in zip(*(generations[model] for model in models), strict=False):
        rows = Pairs()
        rows.add_column(style="dim", overflow="fold", max_width=24)
        rows.add_column(overflow="fold")
        for model, answer in zip(models, answers, strict=True):
            rows.add_row(visible(named(model)), _said(answer.continuation, answer.stopped))
        parts += [Text(f'"{visible(answers[0].prompt)}" goes on:', style="bold"), rows, Text("")]
    return Group(*parts)


@dataclass(frozen=True)
class SideBySide:
    """Answers of several models to one prompt: columns beside each other, or below where there is no room.

    `answers`: by model, the text and why it stopped.
    """

    prompt: str
    answers: Mapping[str, tuple[str, Stopped]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(f'"{visible(self.prompt)}"', style="bold")
        beside = options.max_width >= _NARROWEST * 1.5 * len(self.answers)
        cells = [(Text(name, style="dim"), _said(*answer)) for name, answer in self.answers.items()]
        grid = Table.grid(padding=(0, 2), expand=beside)
        for _ in cells if beside else range(2):
            grid.add_column(ratio=1 if beside else None, overflow="fold")
        for row in zip(*cells, strict=True) if beside else cells:
            grid.add_row(*row)
        yield grid
        yield Text("")


def measures_view(
    measured: Mapping[str, Mapping[str, Perplexity]],
    said: Mapping[str, Sequence[Continuation]],
    named: Callable[[str], Language] = language,
) -> Group:
    """Show what `verify` found: perplexity per language, bits per byte of the checkpoint, and continuations."""
    grid = languages_table(measured, list(measured)[-1], named=named).columns(*range(2 + len(measured)))
    parts: list[RenderableType] = [grid_table(grid)]
    if (little := too_little_text(measured, named)) is not None:
        parts.append(told(little, style="bold"))
    return Group(*parts, *([generations_view(said, list(said))] if said else []))


def expectation_line(item: Expectation, report: Report) -> Text:
    """Say of one expectation whether it held."""
    mark, style = ("held  ", "green") if item.passed else ("FAILED", "bold red")
    return Text.assemble((mark, style), f"  {visible(outcome(item, report))}")


def report_view(report: Report, output: str, details: bool = False) -> Group:
    """Show a whole report; with `details`, the points of sweeps per language and by what they say, too."""
    parts: list[RenderableType] = []
    if report.variants:
        story = tell(report)
        parts.append(told(headline(report, story), style="bold"))
        if report.perplexity:
            parts += [told(_plainly(line)) for line in (evidence(report, story) or "", *measured_lines(report, story))]
            parts.append(Text(caveat(report) or "", style="dim"))
            if (unsure := no_intervals(report.perplexity, report.language)) is not None:
                parts.append(told(unsure, style="dim"))
        parts.append(Text(""))
    parts.append(grid_table(regions_table(report.regions).columns(*CROWDS)))
    if (variants := variants_table(report)).rows:
        columns = EDITS if report.summary else EDITS[:4]  # without what is measured
        parts.append(grid_table(variants.columns(*columns), head_width=8))
    if (own := own_table(report)).rows:
        parts.append(grid_table(own))
    if report.scores:
        samples = (f"{item.language} {item.sequences} ({item.tokens:,} tokens)" for item in report.scores)
        sample = ", ".join(dict.fromkeys(samples))  # scores of two kinds mostly use the same text
        parts.append(told(f"Scored on sequences: {sample}.", style="dim"))
    if report.perplexity:
        parts += _measured_parts(report, details)
    parts += [expectation_line(item, report) for item in report.expectations]
    written = [name for name, variant in report.variants.items() if variant.written]
    parts.append(Text(""))
    for name in written:
        variant = report.variants[name]
        again = " (already complete)" if variant.reused else ""
        parts.append(told(f"wrote {variant.path} ({size(variant.bytes or 0)}){again}"))
    parts.append(told(f"report {output}/report.html, {output}/report.json"))
    if report.scores or report.perplexity:
        cached = f"kept   {cache_folder()}, for the next run; `surgeon cache` lists and clears it"
        parts.append(told(cached, style="dim"))
    parts += [told(pushed_line(name, item)) for name, item in report.pushed.items()]
    return Group(*parts)


def _measured_parts(report: Report, details: bool) -> list[RenderableType]:
    """Show what was measured of the variants, and what they go on with."""
    parts: list[RenderableType] = []
    shown = [name for name in report.perplexity if name != "base"] if details else report.measured_alone
    if shown or not report.sweeps:
        parts.append(perplexity_view(report, shown))
    for name, sweep in report.sweeps.items():  # draws of one control stand among the variants
        if details or list(sweep.axes) != ["seed"]:
            grid = sweep_table(report, name)
            parts.append(grid_table(grid.columns(*range(len(grid.heads) - 1))))
    if (others := summary_table(report)).rows:
        parts.append(grid_table(others, head_width=_HEAD))
    parts += [Text(_plainly(visible(line))) for line in part_lines(report)]
    method = report.method
    parts.append(
        told(
            f"At most {method['tokens']} tokens per language; window {method['window']}, "
            f"stride {method['stride']}, special tokens {method['bos']}, {method['precision']} arithmetic. "
            "x = ratio to base.",
            style="dim",
        )
    )
    if report.generations:
        talkers = [name for name in ["base", *shown] if name in report.generations]
        parts += [Text(""), generations_view(report.generations, talkers, report.named)]
    return parts


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


def facts(*pairs: tuple[str, str | None]) -> Table:
    """Lay out names and values in two columns; long values wrap beside their name."""
    grid = Pairs()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            grid.add_row(Text(name, style="dim"), value)
    return grid
