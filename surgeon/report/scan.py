"""The scan: a region seen through the whole model, layers and roles down, residual dimensions across, hits as light."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.report.data import RegionReport, Report, Scan
from surgeon.report.drawing import Figure, Spec, amount, colour, finished, layer, words
from surgeon.report.png import encoded
from surgeon.report.story import Story, is_control
from surgeon.report.words import percent

# From dark to light, the same on every ground: it is a picture of light.
LIGHT = ((6, 8, 18), (40, 18, 84), (112, 30, 108), (188, 55, 84), (237, 105, 37), (251, 180, 60), (255, 252, 220))
EXPONENT = 1.5  # keeps what chance does to small tensors dim
MOST_SCANS = 8  # regions beyond those of the first picture that are drawn
_WIDTH, _LABELLED = 350, 4


def scan_figures(report: Report, story: Story) -> list[Figure]:
    """Draw the region that the page is about, the control beside it in the same light; then the other regions."""
    scans = {name: region.scan for name, region in report.regions.items() if region.scan is not None}
    result = []
    first = [name for name in (story.region, story.beside) if name in scans]
    if first:
        result.append(_figure("scan", first, report, True))
    rest = [name for name in scans if name not in first]
    return result + [_figure(f"scan-{name}", [name], report, False) for name in rest[:MOST_SCANS]]


def brightest(scan: Scan) -> float:
    """Return the share that takes full light: that of the brightest cells, norms aside, where a cell is all or none."""
    shares = scan.shares()[[i for i, (_, role) in enumerate(scan.rows) if role != "norm"]]
    return float(np.quantile(shares[shares > 0], 0.997)) if shares.any() else 1.0


def picture(shares: NDArray[np.float64], full: float) -> str:
    """Return shares as a PNG in a data URL, a pixel per cell.

    Args:
        shares: float64 of shape (rows, columns).
        full: the share that takes full light.
    """
    levels = np.rint(255 * np.minimum(shares / full, 1.0) ** EXPONENT).astype(np.uint8)
    anchors = np.array(LIGHT, dtype=np.float64)
    at = np.linspace(0, len(anchors) - 1, 256)
    palette = np.stack([np.interp(at, np.arange(len(anchors)), anchors[:, i]) for i in range(3)], axis=1)
    content = encoded(levels, np.rint(palette).astype(np.uint8))
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _figure(name: str, regions: list[str], report: Report, key: bool) -> Figure:
    scans = {region: scan for region in regions if (scan := report.regions[region].scan) is not None}
    full = brightest(scans[regions[0]])
    rows = scans[regions[0]].rows
    panels = [_panel(region, scan, rows, full) for region, scan in scans.items()]
    panels[0]["layer"].append(_marks(report.regions[regions[0]], scans[regions[0]]))
    panels[-1]["layer"].append(_lamp(full))
    title = f"Where {regions[0]} is" + (f", and {regions[1]}" if len(regions) > 1 else "")
    spec = finished({"vconcat": panels, "spacing": 12})
    return Figure(name, title, _caption(regions, scans, report), spec, key=key, scans=tuple(scans))


def _caption(regions: list[str], scans: dict[str, Scan], report: Report) -> str:
    scan = scans[regions[0]]
    of = f", {scan.width} to a column (the fullest counts)" if scan.width > 1 else ""
    region = report.regions[regions[0]]
    text = (
        f"Across: the {region.hidden_size:,} dimensions of the residual stream{of}. Down: the roles, "
        "each from the first layer to the last. Light: the share of a dimension's weights there that the region holds. "
        "A bright line from top to bottom is a dimension that recurs through the model"
    )
    fullest = [str(item.index) for item in region.dimensions[:3]]
    text += f"; the fullest are {', '.join(fullest)}." if fullest else "."
    if len(regions) > 1:
        control = ", the control" if is_control(report, regions[1]) else ""
        text += f" Below, in the same light: {regions[1]}{control}."
    return text


def _panel(name: str, scan: Scan, rows: list[tuple[int | None, str]], full: float) -> Spec:
    """Draw one region on the rows of the first."""
    at = {row: i for i, row in enumerate(scan.rows)}
    shares = np.zeros((len(rows), scan.columns))
    shares[[i for i, row in enumerate(rows) if row in at]] = scan.shares()[[at[row] for row in rows if row in at]]
    width, height = _WIDTH, max(210, min(2 * len(rows), 480))
    roles = [role for _, role in rows]
    blocks = [
        {"role": role, "y": roles.index(role), "middle": roles.index(role) + roles.count(role) / 2}
        for role in dict.fromkeys(roles)
    ]
    left_out = [block for block in blocks if not any(role == block["role"] for _, role in scan.rows)]
    labels = {"grid": False, "tickCount": 5, "labelExpr": f"format(datum.value * {scan.width}, 'd')"}
    across = {"domain": [0, scan.columns], "nice": False}
    x = amount("x", title=f"{name}, by residual dimension", scale=across, axis=labels)
    down = {"title": None, "scale": {"domain": [len(rows), 0], "nice": False}, "axis": None}
    look = {"width": width, "height": height, "aspect": False, "smooth": False, "align": "left", "baseline": "top"}
    grey = {"text": "left out", "fontSize": 12, "color": "#d9dee6"}
    layers = [
        _with([{"url": picture(shares, full), "x": 0}], layer("image", look, x=x, y={"value": 0}, url=words("url"))),
        _with(blocks[1:], layer("rule", {"color": colour("ground"), "strokeWidth": 1}, y=amount("y", **down))),
        _with(blocks, layer("text", {"align": "right", "dx": -8, "fontSize": 12}, x={"value": 0},
                            y=amount("middle", **down), text=words("role"))),
        _with(left_out, layer("text", grey, x={"value": width / 2}, y=amount("middle", **down))),
    ]  # fmt: skip
    return {"width": width, "height": height, "layer": layers}


def _with(rows: list[dict[str, Any]], drawn: Spec) -> Spec:
    return {"data": {"values": rows}, **drawn}


def _marks(region: RegionReport, scan: Scan) -> Spec:
    """Name above the picture the fullest dimensions, as many as stand clear of each other."""
    kept: list[int] = []
    for item in region.dimensions:
        clear = all(abs(item.index - other) * 12 > scan.columns * scan.width for other in kept)
        if clear and len(kept) < _LABELLED:
            kept.append(item.index)
    pointer = {"shape": "triangle-down", "filled": True, "size": 28, "color": colour("ink"), "opacity": 1}
    return {
        "data": {"values": [{"x": index / scan.width + 0.5, "said": str(index)} for index in kept]},
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
    at = {"value": 0}
    lamp = layer("point", {"opacity": 0}, color=amount("share", scale=scale, legend=legend), x=at, y=at)
    return _with([{"share": 0}], lamp)
