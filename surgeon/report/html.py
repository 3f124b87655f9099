"""`report.html`: the report as one page that needs nothing else.

The page is rendered from the report's data alone. It loads nothing, works without its script (which only
makes tables sortable), and follows the reader's light or dark setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from surgeon.checkpoint.storage import replacing
from surgeon.report.data import Expectation, RegionReport, Report
from surgeon.report.figures import ORDERS, figures, log_ratio, roles_in_order
from surgeon.report.markup import count, drawing, measured, sorted_by, table, times
from surgeon.report.pictures import write_figures
from surgeon.report.svg import STYLE, Figure
from surgeon.report.words import (
    bounds,
    coordinate,
    is_number,
    language,
    language_name,
    number,
    percent,
    size,
    stopped_note,
    visible,
)

_HERE = Path(__file__).parent
_ORDER_NAMES = {"script": "by script", "family": "by family", "effect": "by effect"}


def write_page(report: Report, output: Path) -> list[Path]:
    """Write `report.html`, and its figures as files into `figures/`, into an output folder; returns them."""
    drawn = figures(report)
    files = write_figures(report, output / "figures", drawn)
    with replacing(output / "report.html") as staged:
        staged.write_text(page(report, drawn), encoding="utf-8")
    return [output / "report.html", *files]


def page(report: Report, drawn: Sequence[Figure] | None = None) -> str:
    """Return the whole page."""
    by_name = {figure.name: figure for figure in (figures(report) if drawn is None else drawn)}
    sections = [("outcome", "Outcome", _outcome(report))]
    alone = report.only(report.measured_alone)
    if report.sweeps and report.perplexity:
        sections.append(("sweeps", "Sweeps", _sweeps(report, by_name)))
    if report.perplexity:
        sections.append(("languages", "Languages", _languages(alone, by_name)))
    if report.generations:
        sections.append(("continuations", "Continuations", _continuations(report)))
    if report.regions:
        sections.append(("regions", "Regions", _regions(report, by_name)))
    sections += [("recipe", "Recipe", _recipe(report)), ("again", "Run it again", _again(report))]
    links = "".join(f'<li><a href="#{anchor}">{title}</a></li>' for anchor, title, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{title}</h2>{content}</section>'
        for anchor, title, content in sections
    )
    style = "".join((_HERE / name).read_text(encoding="utf-8") for name in (STYLE.name, "page.css"))
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(report.name)} on {escape(report.model.name)}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#outcome">Skip to the outcome</a>
<header>
<h1>{escape(report.name)}</h1>
<p class="lead">{_lead(report)}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
<footer>{_footer(report)}</footer>
<script>
{script}</script>
</body>
</html>
"""


def _lead(report: Report) -> str:
    model = report.model
    kind = f"{escape(model.model_type)}, " if model.model_type else ""
    sentence = f"Surgery on <code>{escape(model.name)}</code> ({kind}{model.parameters:,} parameters)"
    if report.perplexity:
        languages, variants = len(report.perplexity["base"]), len(report.perplexity) - 1
        sentence += f", measured on {count(languages, 'language')} in {count(variants, 'variant')}"
    failed = sum(not item.passed for item in report.expectations)
    if report.expectations:
        held = "every expectation held" if not failed else f"{failed} of {len(report.expectations)} expectations failed"
        sentence += f": {held}"
    return sentence + "."


def _outcome(report: Report) -> str:
    parts = []
    if report.expectations:
        parts.append(f'<ul class="verdicts">{"".join(_verdict(item) for item in report.expectations)}</ul>')
    rows = []
    points = {point for sweep in report.sweeps.values() for point in sweep.points}
    for name, variant in report.variants.items():
        if name in points and not variant.written:
            continue  # the sweep's own table has it
        summary = report.summary.get(name)
        figures_of = ["-", "-"]
        if summary is not None:
            figures_of = [number(summary.geometric_mean_perplexity), times(summary.ratio_to_base)]
        where = f"<code>{escape(_relative(variant.path))}</code>" if variant.path else "measured only"
        done = ", ".join(f"<code>{escape(operation)}</code>" for operation in variant.operations)
        share = percent(variant.entries / report.model.parameters) if report.model.parameters else "-"
        rows.append([
            escape(name), *figures_of, f"{variant.entries:,}", share, f'<td class="word wrap">{done}</td>', where,
        ])  # fmt: skip
    if "base" in report.summary and rows:
        mean = number(report.summary["base"].geometric_mean_perplexity)
        rows.insert(0, ["base", mean, "", "", "", '<td class="word wrap"></td>', ""])
    heads = ["variant", "perplexity", "times base", "entries", "of the model", "operations", "written to"]
    if rows:
        caption = "Variants. Perplexity is the geometric mean over the languages."
        parts.append(table(caption, heads, rows, words=frozenset({5, 6})))
    return "".join(parts) or "<p>Every variant is a point of a sweep, below.</p>"


def _relative(path: str) -> str:
    """Shorten the path of a variant to what follows the output folder."""
    return "/".join(Path(path).parts[-2:])


def _verdict(item: Expectation) -> str:
    where = f" in {language_name(item.language)}" if item.language else ""
    kind, word = ("held", "held") if item.passed else ("failed", "FAILED")
    ratio = "not a number" if math.isnan(item.ratio) else f"{_exactly(item.ratio)} times the base's"
    return (
        f'<li><b class="{kind}">{word}</b><span>{escape(item.variant)}{escape(where)}: perplexity {ratio}, '
        f"expected {bounds(item.ratio_at_least, item.ratio_at_most)}</span></li>"
    )


def _exactly(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 100 else number(ratio)


def _sweeps(report: Report, by_name: Mapping[str, Figure]) -> str:
    caption = "Perplexity is the geometric mean over the languages; × is the multiple of the base's."
    parts = []
    for name, sweep in report.sweeps.items():
        heads = ["variant", "perplexity", *map(escape, sweep.axes), "entries"]
        rows = [_point(report, point, values) for point, values in sweep.points.items()]
        words = frozenset(i for i, cell in enumerate(rows[0]) if not cell.startswith("<td"))
        whole = _perplexity_table(report.only(list(sweep.points)))
        parts.append(
            f"<h3>{escape(name)}</h3>{drawing(by_name[f'sweep-{name}'])}{table(caption, heads, rows, (), True, words)}"
            f"<details><summary>{escape(name)}, language by language</summary>{whole}</details>"
        )
    return "".join(parts)


def _point(report: Report, point: str, values: Sequence[Any]) -> list[str]:
    """Return the line of one point of a sweep."""
    summary, entries = report.summary[point], report.variants[point].entries
    log = summary.log_geometric_mean_perplexity
    mean = f"{number(summary.geometric_mean_perplexity)} {times(summary.ratio_to_base)}"
    cells = [sorted_by(value, coordinate(value)) if is_number(value) else escape(coordinate(value)) for value in values]
    order = log if math.isfinite(log) else 1e9
    return [escape(point), sorted_by(order, mean), *cells, sorted_by(entries, f"{entries:,}")]


def _continuations(report: Report) -> str:
    """Show what each model puts after each prompt; what a broken model says can break neither page nor line."""
    shown = ["base", *report.measured_alone]
    rest = [name for name in report.generations if name not in shown]
    parts = ["<p>What each model puts after a prompt, always choosing the likeliest token.</p>"]
    for i, first in enumerate(report.generations["base"]):
        more = ""
        if rest:
            summary = f"<summary>The {count(len(rest), 'point')} of sweeps</summary>"
            more = f"<details>{summary}{_said(report, rest, i)}</details>"
        prompt = escape(visible(first.prompt))
        parts.append(f'<h3><bdi dir="auto">{prompt}</bdi></h3>{_said(report, shown, i)}{more}')
    return "".join(parts)


def _said(report: Report, models: Sequence[str], prompt: int) -> str:
    lines = []
    for model in models:
        found = report.generations[model][prompt]
        note = f' <span class="quiet">{stopped_note(found.stopped)}</span>' if found.stopped != "length" else ""
        said = f'<bdi dir="auto">{escape(visible(found.continuation))}</bdi>'
        lines.append(f"<dt>{escape(model)}</dt><dd>{said}{note}</dd>")
    return f'<dl class="said">{"".join(lines)}</dl>'


def _languages(report: Report, by_name: Mapping[str, Figure]) -> str:
    method = report.method
    parts = [
        f"<p>Token-weighted perplexity over at most {method.get('tokens', '?'):,} tokens a language, in windows of "
        f"{method.get('window', '?')} with stride {method.get('stride', '?')}; boundary token "
        f"{escape(str(method.get('bos', '?')))}; {escape(str(method.get('precision', '?')))} arithmetic. "
        "Lower is better. Perplexities of models with different tokenizers do not compare; bits per byte do.</p>"
    ]
    inputs, drawings = [], []
    for i, order in enumerate(ORDERS):
        checked = " checked" if i == 0 else ""
        inputs.append(
            f'<input type="radio" name="order" id="order-{order}"{checked}>'
            f'<label for="order-{order}">{_ORDER_NAMES[order]}</label>'
        )
        drawings.append(drawing(by_name["perplexity" if order == "script" else f"perplexity-by-{order}"]))
    group = f'<div class="orders" role="group" aria-label="Order of the languages">{"".join(inputs + drawings)}</div>'
    parts.append(group)
    if "ratios" in by_name:
        parts.append(drawing(by_name["ratios"]))
    return "".join(parts) + _perplexity_table(report)


def _perplexity_table(report: Report) -> str:
    variants = [name for name in report.perplexity if name != "base"]
    rows = []
    for code, base in sorted(report.perplexity["base"].items(), key=lambda item: language_name(item[0])):
        known = language(code)
        cells = [escape(known.name), measured(base)]
        cells += [measured(report.perplexity[name][code], log_ratio(report, name, code)) for name in variants]
        cells.append(f'<td data-value="{base.bits_per_byte:.6g}">{base.bits_per_byte:.3f}</td>')
        cells += [escape(known.script), escape(known.family)]
        rows.append(cells)
    foot = ["Geometric mean", number(report.summary["base"].geometric_mean_perplexity)]
    for name in variants:
        summary = report.summary[name]
        foot.append(f"{number(summary.geometric_mean_perplexity)} {times(summary.ratio_to_base)}")
    heads = ["language", "base", *map(escape, variants), "base, bits/byte", "script", "family"]
    caption = "Perplexity per language; × is the multiple of the base's. The column heads sort."
    return table(caption, heads, rows, [*foot, "", "", ""], True, frozenset({len(heads) - 2, len(heads) - 1}))


def _regions(report: Report, by_name: Mapping[str, Figure]) -> str:
    rows = [
        [escape(name), escape(region.origin), f"{region.entries:,}", f"{region.numel:,}", percent(region.fraction),
         f"{region.tensors:,}"]
        for name, region in report.regions.items()
    ]  # fmt: skip
    caption = "Regions. The share is of the entries in scope."
    parts = [table(caption, ["region", "selected by", "entries", "of", "share", "tensors"], rows, words=frozenset({1}))]
    for i, (name, region) in enumerate(report.regions.items()):
        drawn = "".join(
            drawing(by_name[f"{name}-{kind}"])
            for kind in ("spread", "dimensions", "rows", "columns", "density")
            if f"{name}-{kind}" in by_name
        )
        tables = (
            f"<details><summary>The figures of {escape(name)} as tables</summary>{_region_tables(region)}</details>"
        )
        opened = " open" if i == 0 else ""
        parts.append(f"<details{opened}><summary><b>{escape(name)}</b></summary>{drawn}{tables}</details>")
    return "".join(parts)


def _region_tables(region: RegionReport) -> str:
    roles = []
    for role in roles_in_order(list(region.roles)):
        count, spread = region.roles[role], region.spreads.get(role)
        cells = [escape(role), f"{count.entries:,}", f"{count.numel:,}", percent(count.entries / count.numel)]
        if spread is not None:
            at = region.spread_at.index(0.01)
            cells += [percent(spread.rows[at]), percent(spread.columns[at])]
        roles.append([*cells, *["-"] * (6 - len(cells))])
    heads = ["role", "entries", "of", "share", "in 1 % of rows", "in 1 % of columns"]
    parts = [table("By role: share selected, and what the fullest rows and columns hold", heads, roles)]
    dimensions = [
        [str(item.index), f"{item.hits:,}", f"{item.slots:,}", percent(item.hits / item.slots), str(item.tensors)]
        for item in region.dimensions
    ]
    if dimensions:
        heads = ["dimension", "entries", "of", "share", "stands out in tensors"]
        caption = f"Residual dimensions, of {region.hidden_size:,}, that hold most entries"
        parts.append(table(caption, heads, dimensions, sortable=True))
    return "".join(parts)


def _recipe(report: Report) -> str:
    text = yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True)
    scored = ""
    if report.scores:
        rows = [
            [escape(language_name(item.language)), item.kind, f"{item.sequences:,}", f"{item.tokens:,}"]
            for item in report.scores
        ]
        scored = table("Text that importance was scored on", ["language", "score", "sequences", "tokens"], rows)
    return (
        "<p>As it was carried out, defaults filled in; also in <code>recipe.yaml</code> beside this page.</p>"
        f'<pre tabindex="0" aria-label="Recipe">{escape(text)}</pre>{scored}'
    )


def _again(report: Report) -> str:
    environment = report.environment
    packages: Mapping[str, str] = environment.get("packages", {})
    pinned = packages.get("model-surgeon")
    install = f"pip install model-surgeon{f'=={pinned}' if pinned else ''}"
    facts: list[tuple[str, Any]] = [
        ("model", report.model.name), ("revision", report.model.revision),
        ("content SHA-256", report.model.content_sha256),
        *((key, environment.get(key)) for key in ("python", "platform", "processors", "device")),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
        ("seconds", ", ".join(f"{what} {seconds:g}" for what, seconds in report.timings.items())),
    ]  # fmt: skip
    shown = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts if value not in (None, "")
    )
    return (
        f'<pre tabindex="0" aria-label="Commands">{escape(install)}\nsurgeon apply recipe.yaml --output again</pre>'
        "<p>Seeds are part of the recipe. <code>manifest.json</code> beside this page holds the SHA-256 of every file "
        f"that went in and came out.</p><dl>{shown}</dl>"
    )


def _footer(report: Report) -> str:
    written = [variant for variant in report.variants.values() if variant.written]
    amount = size(sum(variant.bytes or 0 for variant in written))
    made = f"{count(len(written), 'variant')} written, {amount}. " if written else ""
    return (
        f"{made}Everything on this page comes from <code>report.json</code> beside it; it loads nothing from elsewhere."
    )
