"""From Vega-Lite specifications to pictures, in one look.

Colours in a specification are variables, such as `var(--ink)`: on a page they follow the reader's light or dark
setting, in a file they are filled in for one of the two.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.store import keep_value, path_of, value
from surgeon.inside import replacing
from surgeon.memory import require_room_for_figures
from surgeon.report.escaping import svg_id
from surgeon.report.png import repacked

# Name, on light ground, on dark ground. Text and marks keep a contrast of 4.5 to the ground in both.
PALETTE = {
    "ground": ("#ffffff", "#12161c"), "raised": ("#f4f6f9", "#1a2028"), "line": ("#d9dee6", "#333c49"),
    "ink": ("#1d2430", "#e6eaf0"), "quiet": ("#5b6675", "#9aa7b8"), "link": ("#0b5fa5", "#6cb6ff"),
    "good": ("#17693a", "#6fd08c"), "bad": ("#b3261e", "#ff8a80"), "warm": ("#8a5a00", "#e3b341"),
    "series-0": ("#c2410c", "#ff9e64"), "series-1": ("#0b6bcb", "#6cb6ff"), "series-2": ("#17693a", "#6fd08c"),
    "series-3": ("#8b3fc7", "#d2a8ff"), "series-4": ("#8a5a00", "#e3b341"), "series-5": ("#0f6a63", "#5eead4"),
    "series-6": ("#be185d", "#f9a8d4"), "series-7": ("#44546a", "#b6c2d1"),
    "cool-3": ("#0b5fa5", "#6cb6ff"), "cool-2": ("#5c9ed0", "#2f628f"), "cool-1": ("#b5d5ee", "#234764"),
    "none": ("#e6e9ee", "#2a313b"),
    "heat-1": ("#fde4cf", "#3d2619"), "heat-2": ("#fbc495", "#5a3420"), "heat-3": ("#f59d5c", "#7b4120"),
    "heat-4": ("#dd6b2c", "#9c4f1f"), "heat-5": ("#b9430f", "#f08c4b"), "heat-6": ("#8c2408", "#ffb784"),
    "heat-7": ("#5c1206", "#ffe0c7"), "lost": ("#3d4450", "#aab4c2"),
}  # fmt: skip
HEAT = [f"heat-{i}" for i in range(1, 8)]
COOL = ["cool-3", "cool-2", "cool-1"]
# Fields of colour that carry text in the ground's colour, in the light and in the dark.
STRONG = ("cool-3", "heat-5", "heat-6", "heat-7", "lost")
SERIES = [f"series-{i}" for i in range(8)]
SHAPES = ["circle", "diamond", "square", "triangle-up", "triangle-down", "cross", "triangle-right", "triangle-left"]
FONT = "Arial, sans-serif"  # its widths are those of the font that the renderer brings along
# Ticks of a logarithmic axis of multiples that have a label: all of them in less than a decade, those that begin with
# 1, 2 and 5 in few, else the powers of ten, which then are all that has a line.
SPAN = "domain('AXIS')[1] / domain('AXIS')[0]"
BEGINS = "slice(format(datum.value, 'e'), 0, 1)"
LABELLED = f"({SPAN} < 6 || indexof({SPAN} < 1e4 ? ['1', '2', '5'] : ['1'], {BEGINS}) >= 0)"
TIMES = f"{LABELLED} ? '×' + format(datum.value, datum.value < 1e5 ? ',~g' : '~e') : ''"
LINED = f"{SPAN} < 1e4 || {BEGINS} == '1'"
Spec: TypeAlias = dict[str, Any]  # a piece of Vega-Lite
# What is broken says so at the edge of an axis.
BROKEN: Spec = {
    "transform": [{"filter": "datum.broken != ''"}],
    "mark": {"type": "text", "align": "right", "dx": -8, "fontSize": 11},
    "encoding": {"text": {"field": "broken", "type": "nominal"}},
}
_EXPOSE = "window.vegaEmbed = vegaEmbed;"
_CLOSER = 0.1  # how much of a distance is left beyond guessing
MOST = 25.0  # nats per token beyond which a model is merely broken
_MOST_KEPT = 400  # drawings in the cache folder, of some 50 kB each
ZOOM = 2.0  # pixels of a PNG per unit of the drawing


@dataclass(frozen=True)
class Figure:
    """A picture: `name` is its file's stem, `title` and `caption` say in words all that a reader needs to know.

    `spec` is Vega-Lite. `fluid` if its width may follow the page's. `key` if it is among a page's first two. `scans`
    are the regions whose scans it shows.
    """

    name: str
    title: str
    caption: str
    spec: Spec
    fluid: bool = False
    key: bool = False
    scans: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Figure({self.name}: {self.title})"

    def _repr_svg_(self) -> str:
        """Show the figure in a notebook."""
        return themed(svg(self), dark=False)


def colour(name: str) -> str:
    """Return a colour of the palette as a variable."""
    return f"var(--{name})"


def words(field: str, **more: Any) -> Spec:
    """Return a channel of names."""
    return {"field": field, "type": "nominal", **more}


def amount(field: str, **more: Any) -> Spec:
    """Return a channel of numbers."""
    return {"field": field, "type": "quantitative", **more}


def layer(kind: str, look: Spec, only: str = "", **channels: Any) -> Spec:
    """Return marks of a kind with their look, in the rows of which `only` holds."""
    chosen = {"transform": [{"filter": only}]} if only else {}
    return {"mark": {"type": kind, **look}, **chosen, "encoding": channels}


def multiples(across: bool, title: str, **axis: Any) -> Spec:
    """Return a logarithmic axis of multiples of the base's, across or up."""
    labels, lined = (test.replace("AXIS", "x" if across else "y") for test in (TIMES, LINED))
    scale = {"type": "log", "nice": False, "padding": 8}
    lines = {"grid": True, "gridOpacity": {"condition": {"test": lined, "value": 1}, "value": 0}}
    return amount("ratio", title=title, scale=scale, axis={"labelExpr": labels, **lines, **axis})


def the_base(axis: str) -> Spec:
    """Return the line at the base's perplexity."""
    look = {"type": "rule", "strokeWidth": 1.2, "color": colour("ink")}
    return {"data": {"values": [{}]}, "mark": look, "encoding": {axis: {"datum": 1}}}


def named(field: str, sort: Any) -> Spec:
    """Return an axis down the page of names alone, without a line or ticks."""
    return words(field, title=None, sort=sort, axis={"domain": False, "ticks": False, "labelPadding": 6})


def tips(**said: str) -> list[Spec]:
    """Return what pointing at a mark says: by field, its title."""
    return [words(field, title=title) for field, title in said.items()]


def is_drawable(log: float) -> bool:
    """True for the logarithm of a ratio that has a place on an axis; beyond it a model is merely broken."""
    return math.isfinite(log) and abs(log) <= MOST


def closer(log: float, guess: float | None) -> float:
    """Return the logarithm at which a ratio is drawn: what lies beyond guessing is drawn closer together."""
    return log if guess is None or not log > guess or guess <= 0 else guess + (log - guess) * _CLOSER


def drawn_ratios(logs: Iterable[float]) -> Callable[[float], float]:
    """Return where ratios of these logarithms are drawn: in their place, or what is broken at the edge."""
    edge = max([math.log(2), *(log for log in logs if is_drawable(log))]) * 1.08
    return lambda log: math.exp(log if is_drawable(log) else edge)


def finished(spec: Spec) -> Spec:
    """Return a specification in the common look."""
    text = {"labelColor": colour("ink"), "titleColor": colour("quiet"), "labelFontSize": 12, "titleFontSize": 12}
    look = {
        "aria": False, "background": "transparent", "font": FONT, "padding": 4,
        "view": {"stroke": None},
        "text": {"color": colour("ink")}, "rule": {"color": colour("quiet")},
        "axis": {
            **text, "titleFontWeight": "normal", "gridColor": colour("line"), "domainColor": colour("line"),
            "tickColor": colour("line"), "labelLimit": 220, "titleLimit": 500,
        },
        "legend": {
            **text, "titleFontWeight": "normal", "orient": "top", "direction": "horizontal", "columns": 4,
            "labelLimit": 260, "symbolSize": 90, "titleAnchor": "start", "titleLimit": 500,
        },
        "title": {"color": colour("ink"), "fontSize": 13, "anchor": "start"},
        "header": {**text, "titleFontWeight": "normal", "labelFontWeight": "bold"},
    }  # fmt: skip
    return {**spec, "config": look}


def svg(figure: Figure) -> str:
    """Draw a figure for a page: colours stay variables, and no id is another figure's.

    To a screen reader it is one picture, under its title; the tables hold what its marks say.
    """
    require_room_for_figures()
    import vl_convert

    spec = json.dumps(figure.spec, allow_nan=False)
    drawn = _kept("svg", spec, lambda spec: vl_convert.vegalite_to_svg(spec).encode("utf-8")).decode("utf-8")
    drawn = re.sub(r' (?:aria-[a-z]+|role)="[^"]*"', "", drawn)
    # Ids are numbered through a process; here they begin anew, so that a picture does not depend on those before it.
    for number, name in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', drawn))):
        own = f"{svg_id(figure.name)}-{number}"
        drawn = drawn.replace(f'id="{name}"', f'id="{own}"').replace(f"url(#{name})", f"url(#{own})")
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(figure.title)}" ', 1)


def _kept(kind: str, source: str, make: Callable[[str], bytes]) -> bytes:
    """Return what was made of the same source before, out of the cache folder; else make it, and keep it there.

    A run's page and cards show the same pictures, and the next run mostly shows them again; making the first takes
    seconds. Of the drawings the latest are kept.
    """
    made_by = f"{version('vl-convert-python')} {kind}\n{source}"
    path = path_of("page", sha256(made_by.encode()), f".{kind}")
    held = value(path)
    if held is not None:
        return held
    content = make(source)
    keep_value(path, content)
    with suppress(OSError):  # another process may be clearing up, too
        drawings = [file for file in path.parent.iterdir() if file.suffix in (".svg", ".png")]
        for file in sorted(drawings, key=lambda file: file.stat().st_mtime)[:-_MOST_KEPT]:
            file.unlink()
    return content


def themed(drawn: str, dark: bool) -> str:
    """Fill in the colours of a drawing, on its own ground, so that it looks the same wherever it is shown."""
    for name, pair in PALETTE.items():
        drawn = drawn.replace(f"var(--{name})", pair[dark])
    ground = f'<rect width="100%" height="100%" fill="{PALETTE["ground"][dark]}"/>'
    return re.sub(r"(<svg[^>]*>)", rf"\1{ground}", drawn, count=1)


def write_pictures(figure: Figure, drawn: str, folder: str | Path) -> list[Path]:
    """Write NAME.svg and NAME-dark.svg, and of the key figures both as PNG; return the files."""
    require_room_for_figures()
    import vl_convert

    files = []
    for suffix, dark in (("", False), ("-dark", True)):
        picture = themed(drawn, dark)
        contents = {"svg": picture.encode("utf-8")}
        if figure.key:
            contents["png"] = _kept(
                "png", picture, lambda drawing: repacked(vl_convert.svg_to_png(drawing, scale=ZOOM))
            )
        for ending, content in contents.items():
            path = Path(folder) / f"{figure.name}{suffix}.{ending}"
            with replacing(path) as staged:
                staged.write_bytes(content)
            files.append(path)
    return files


def runtime() -> str:
    """Return the script that makes specifications live: Vega, Vega-Lite and Vega-Embed of the drawing library."""
    require_room_for_figures()
    import vl_convert

    return _kept("js", _EXPOSE, lambda script: vl_convert.javascript_bundle(script).encode("utf-8")).decode("utf-8")


def script_data(data: Any) -> str:
    """Return data as JSON that may stand inside a script element: no text of it can end the element."""
    return re.sub(
        r"[<>&\u2028\u2029]",
        lambda found: f"\\u{ord(found[0]):04x}",
        json.dumps(data, ensure_ascii=False, allow_nan=False),
    )
