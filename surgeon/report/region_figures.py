"""The figures of regions: where each lies in the model, which share entries, and how far entries crowd.

The scan is a region seen through the whole model: layers and roles down, residual dimensions across, hits as light.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.report.charts import (
    CROWDING,
    JACCARD,
    Spec,
    amount,
    cells,
    colour,
    colour_map,
    finished,
    heads,
    hue_and_shape,
    layer,
    named,
    tips,
    words,
)
from surgeon.report.data import Report
from surgeon.report.drawing import Figure, png
from surgeon.report.regions import RegionReport, Scan
from surgeon.report.story import Story, is_control, own_language
from surgeon.report.words import percent, roles_in_order

# From dark to light, the same on every ground: it is a picture of light.
LIGHT = ((6, 8, 18), (40, 18, 84), (112, 30, 108), (188, 55, 84), (237, 105, 37), (251, 180, 60), (255, 252, 220))
EXPONENT = 1.5  # keeps what chance does to small tensors dim
MOST_SCANS = 8  # regions beyond those of the first picture that are drawn
_WIDTH, _LABELLED = 350, 4
_PROFILE = 46  # height of the profile below


def scan_figures(report: Report, story: Story) -> list[Figure]:
    """Draw the region that the page is about, the control beside it in the same light; then the other regions."""
    scans = {name: region.scan for name, region in report.regions.items() if region.scan is not None}
    result = []
    first = [name for name in (story.region, story.beside) if name in scans]
    if first:
        result.append(_figure("scan", first, report, True))
    rest = [name for name in scans if name not in first[:1]]
    return result + [_figure(f"scan-{name}", [name], report, False) for name in rest[:MOST_SCANS]]


def pooled(shares: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Return shares in at most so many columns: each the largest of its neighbours, so that no line is lost.

    Args:
        shares: float64 of shape (rows, columns).
        most: columns of the result, at most.
    """
    columns = shares.shape[1]
    if columns <= most:
        return shares
    ends = [-(-columns * (i + 1) // most) for i in range(most)]
    starts = [columns * i // most for i in range(most)]
    return np.stack([shares[:, start:end].max(axis=1) for start, end in zip(starts, ends, strict=True)], axis=1)


def brightest(scan: Scan) -> float:
    """Return the share that takes full light: that of the brightest cells, norms aside, where a cell is all or none."""
    shares = scan.shares()[[i for i, (_, role) in enumerate(scan.rows) if role != "norm"]]
    return float(np.quantile(shares[shares > 0], 0.997)) if shares.any() else 1.0


def light_palette() -> NDArray[np.uint8]:
    """Return the colour of each of 256 levels of light: uint8 of shape (256, 3)."""
    anchors = np.array(LIGHT, dtype=np.float64)
    at = np.linspace(0, len(anchors) - 1, 256)
    colours = np.stack([np.interp(at, np.arange(len(anchors)), anchors[:, i]) for i in range(3)], axis=1)
    palette: NDArray[np.uint8] = np.rint(colours).astype(np.uint8)
    return palette


def picture(shares: NDArray[np.float64], full: float) -> str:
    """Return shares as a PNG in a data URL, a pixel per cell.

    Args:
        shares: float64 of shape (rows, columns).
        full: the share that takes full light.
    """
    levels = np.rint(255 * np.minimum(shares / full, 1.0) ** EXPONENT).astype(np.uint8)
    content = png(levels, light_palette())
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _figure(name: str, regions: list[str], report: Report, key: bool) -> Figure:
    scans = {region: scan for region in regions if (scan := report.regions[region].scan) is not None}
    full = brightest(scans[regions[0]])
    marked = _marked(report.regions[regions[0]], scans[regions[0]])
    panel = _panel(scans[regions[0]], full, marked)
    profile = _profile(scans)
    profile["layer"].append(_lamp(full))  # its legend stands below both
    spec = finished({"vconcat": [panel, profile], "spacing": 10})
    caption = _caption(regions, scans[regions[0]], report, marked)
    return Figure(name, f"Where {regions[0]} is", caption, spec, key=key, scans=tuple(scans))


def _caption(regions: list[str], scan: Scan, report: Report, marked: list[int]) -> str:
    region = report.regions[regions[0]]
    text = (
        f"Columns are the {region.hidden_size:,} residual-stream dimensions, rows are layers grouped by role. A bright "
        "cell holds a large share of a dimension's weights; where several dimensions share a pixel, the fullest is "
        "shown. A bright vertical line is a dimension that recurs through the model."
    )
    if marked:
        text += f" The arrows name the fullest that stand apart: {', '.join(map(str, marked))}."
    control = ", the control" if len(regions) > 1 and is_control(report, regions[1]) else ""
    beside = f" and {regions[1]}{control}" if len(regions) > 1 else ""
    return f"{text} Below: the mean over all rows, for {regions[0]}{beside}."


def _across(scan: Scan, title: str | None, **axis: Any) -> Spec:
    """Return the axis of the residual dimensions, several of which may be a column."""
    labels = {"grid": False, "tickCount": 5, "labelExpr": f"format(datum.value * {scan.width}, 'd')", **axis}
    return amount("x", title=title, scale={"domain": [0, scan.columns], "nice": False}, axis=labels)


def _panel(scan: Scan, full: float, marked: list[int]) -> Spec:
    """Draw one region, and name the marked dimensions above the picture."""
    rows, shares = scan.rows, pooled(scan.shares(), _WIDTH)
    width, height = _WIDTH, max(210, min(2 * len(rows), 480))
    roles = [role for _, role in rows]
    blocks = [
        {"role": role, "y": roles.index(role), "middle": roles.index(role) + roles.count(role) / 2}
        for role in dict.fromkeys(roles)
    ]
    x = _across(scan, None, labels=False, ticks=False)
    down = {"title": None, "scale": {"domain": [len(rows), 0], "nice": False}, "axis": None}
    look = {"width": width, "height": height, "aspect": False, "smooth": False, "align": "left", "baseline": "top"}
    layers = [
        _with([{"url": picture(shares, full), "x": 0}], layer("image", look, x=x, y={"value": 0}, url=words("url"))),
        _with(blocks[1:], layer("rule", {"color": colour("ground"), "strokeWidth": 1}, y=amount("y", **down))),
        _with(blocks, layer("text", {"align": "right", "dx": -8, "fontSize": 12}, x={"value": 0},
                            y=amount("middle", **down), text=words("role"))),
        _marks(marked, scan),
    ]  # fmt: skip
    return {"width": width, "height": height, "layer": layers}


def _profile(scans: dict[str, Scan]) -> Spec:
    """Draw the mean over all rows for each region, over the same dimensions as the picture above."""
    first = next(iter(scans.values()))
    rows = []
    for i, (name, scan) in enumerate(scans.items()):
        means = pooled(scan.shares().mean(axis=0)[np.newaxis], _WIDTH)[0]
        step = scan.columns / len(means)
        rows += [{"region": name, "x": (at + 0.5) * step, "mean": round(float(value), 5), "order": i}
                 for at, value in enumerate(means)]  # fmt: skip
    legend = {"title": None, "orient": "bottom", "symbolType": "stroke"} if len(scans) > 1 else None
    hue, _ = hue_and_shape("region", list(scans), legend)
    up = amount("mean", title=None, axis={"format": "~%", "tickCount": 2, "domain": False})
    look = {"strokeWidth": 1.2, "interpolate": "step"}
    line = _with(rows, layer("line", look, x=_across(first, "residual dimension"), y=up, color=hue))
    return {"width": _WIDTH, "height": _PROFILE, "layer": [line], "resolve": {"scale": {"color": "independent"}}}


def _with(rows: list[dict[str, Any]], drawn: Spec) -> Spec:
    return {"data": {"values": rows}, **drawn}


def _marked(region: RegionReport, scan: Scan) -> list[int]:
    """Return the fullest dimensions, as many as stand clear of each other."""
    dimensions: list[int] = []
    for item in region.dimensions:
        clear = all(abs(item.index - other) * 12 > scan.columns * scan.width for other in dimensions)
        if clear and len(dimensions) < _LABELLED:
            dimensions.append(item.index)
    return dimensions


def _marks(dimensions: list[int], scan: Scan) -> Spec:
    """Return the names of dimensions, and what points at them from above the picture."""
    pointer = {"shape": "triangle-down", "filled": True, "size": 28, "color": colour("ink"), "opacity": 1}
    return {
        "data": {"values": [{"x": index / scan.width + 0.5, "said": str(index)} for index in dimensions]},
        "encoding": {"x": amount("x")},
        "layer": [
            layer("point", pointer, y={"value": -5}),
            layer("text", {"baseline": "bottom", "fontSize": 11}, y={"value": -10}, text=words("said")),
        ],
    }


def _lamp(full: float) -> Spec:
    """Return nothing but a legend of the light."""
    ramp = ["#" + bytes(rgb).hex() for rgb in LIGHT]
    most = f"'{percent(full)} or more'"
    legend = {
        "title": "share of the weights along a dimension", "orient": "bottom", "gradientLength": 200,
        "values": [0, full / 2, full],
        "labelExpr": f"datum.value < {full} * 0.9 ? format(100 * datum.value, '.2~r') + ' %' : {most}",
    }  # fmt: skip
    scale = {"type": "pow", "exponent": EXPONENT, "domain": [0, full], "range": ramp, "clamp": True}
    light = amount("share", scale=scale, legend=legend)
    return _with([{"share": 0}], layer("point", {"opacity": 0}, color=light, x={"value": 0}, y={"value": 0}))


def overlap_figure(report: Report) -> Figure:
    """Draw which regions share entries: the Jaccard index of every two; single languages' stand by family."""
    own = {name: own_language(report, name) for name in report.regions}
    names = sorted(report.regions, key=lambda name: (own[name] is not None, report.language(own[name] or "").family))
    rows = []
    for pair in report.overlaps:
        for left, right in ((pair.left, pair.right), (pair.right, pair.left)):
            beyond = 0.0 if abs(pair.jaccard - pair.by_chance) < 0.01 else pair.jaccard
            rows.append({
                "left": left, "right": right, "said": f"{pair.jaccard:.2f}", "exactly": f"{pair.jaccard:.4f}",
                "chance": f"{pair.by_chance:.4f}", **JACCARD.of(beyond),
            })  # fmt: skip
    hover = tips(left="region", right="and", exactly="Jaccard index", chance="by chance")
    few = len(names) <= 16
    axes = heads("left", names), named("right", names)
    spec = colour_map(rows, axes, (42 if few else 20, 22), cells(rows, JACCARD, hover, few))
    text = (
        "Entries that two regions share, divided by those that either has (Jaccard index). Grey: what random regions "
        "of their sizes would share, within 0.01."
    )
    return Figure("overlaps", "Which regions share entries", text, finished(spec))


def crowding_figure(report: Report) -> Figure:
    """Draw how far each region's entries crowd into few rows and columns, role by role."""
    regions = {name: region for name, region in report.regions.items() if region.spreads}
    rows = []
    for name, region in regions.items():
        at = region.spread_at.index(0.01)
        for role, spread in region.spreads.items():
            for axis in ("rows", "columns"):
                share = getattr(spread, axis)[at]
                rows.append({
                    "region": name, "role": role, "axis": axis,
                    "said": f"{100 * share:.2g}" if share < 0.995 else "100", "exactly": percent(share),
                    **CROWDING.of(100 * share),
                })  # fmt: skip
    roles, few = roles_in_order(row["role"] for row in rows), len(regions) <= 12
    hover = tips(region="region", role="role", exactly="of its entries there", axis="in the fullest 1 % of")
    axes = heads("region", list(regions)), named("role", roles)
    single = colour_map(rows, axes, (32 if few else 14, 22), cells(rows, CROWDING, hover, few))
    facet = {"column": words("axis", sort="descending", title=None)}
    spec = {"data": single.pop("data"), "facet": facet, "spec": single}
    text = (
        "Share, in per cent, of a role's entries that the fullest 1 % of its matrices' rows, and of their columns, "
        "hold. Spread evenly it is 1 %, by chance a little more; grey is below 3 %."
    )
    return Figure("crowding", "How far entries crowd into few rows and columns", text, finished(spec))
