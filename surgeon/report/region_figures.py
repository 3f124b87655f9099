"""The figures of regions beside each other: which share entries, and how far entries crowd."""

from __future__ import annotations

from surgeon.report.data import Report
from surgeon.report.drawing import Figure, finished, named, tips, words
from surgeon.report.ramps import CROWDING, JACCARD, cells, heads
from surgeon.report.story import own_language
from surgeon.report.words import percent, roles_in_order


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
    spec = {
        "data": {"values": rows}, "width": {"step": 20 if len(names) > 16 else 42}, "height": {"step": 22},
        "encoding": {"x": heads("left", names), "y": named("right", names)},
        "layer": cells(rows, JACCARD, hover, len(names) <= 16),
    }  # fmt: skip
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
    spec = {
        "data": {"values": rows},
        "facet": {"column": words("axis", sort="descending", title=None)},
        "spec": {
            "width": {"step": 32 if few else 14}, "height": {"step": 22},
            "encoding": {"x": heads("region", list(regions)), "y": named("role", roles)},
            "layer": cells(rows, CROWDING, hover, few),
        },
    }  # fmt: skip
    text = (
        "Share, in per cent, of a role's entries that the fullest 1 % of its matrices' rows, and of their columns, "
        "hold. Spread evenly it is 1 %, by chance a little more; grey is below 3 %."
    )
    return Figure("crowding", "How far entries crowd into few rows and columns", text, finished(spec))
