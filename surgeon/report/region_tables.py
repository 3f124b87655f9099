"""The tables of regions: what they hold, by role, and the dimensions in which they crowd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgeon.report.grid import Cell, Grid, Row, as_cells
from surgeon.report.region_entries import RegionReport
from surgeon.report.words import percent, roles_in_order

CROWDS = (0, 1, 2, 3, 4)  # the columns of regions that there is room for on a terminal


def regions_table(regions: Mapping[str, RegionReport]) -> Grid:
    """Show the regions: entries, density, where entries crowd most, and how they were selected."""
    heads = ("region", "entries", "of", "share", "fullest 1 % of lines hold", "tensors", "selected by")
    rows = [
        Row(as_cells(name, item.entries, item.numel, item.fraction, _crowding(item), item.tensors, item.origin))
        for name, item in regions.items()
    ]
    return Grid("Regions", heads, rows, "The share is of the entries in scope.", (heads[4], "selected by"))


def _crowding(region: RegionReport) -> str:
    """Name the role whose entries crowd most into few rows or columns, and the share they hold; by chance, too."""
    if not region.spreads:
        return "-"
    at = region.spread_at.index(0.01)
    lines = [(getattr(s, axis)[at], role, axis) for role, s in region.spreads.items() for axis in ("rows", "columns")]
    share, role, axis = max(lines)
    told = f"{role} {axis} {percent(share)}"
    chance = region.chance.get(role)
    return told if chance is None else f"{told} (chance {percent(getattr(chance, axis)[at])})"


def role_counts(region: RegionReport) -> dict[str, dict[str, Any]]:
    """Return by role the entries, of how many, and the share of them in the fullest hundredth of rows and columns."""
    at = region.spread_at.index(0.01) if region.spread_at else 0
    found = {}
    for role in roles_in_order(region.roles):
        counted, spread = region.roles[role], region.spreads.get(role)
        rows, columns = (None, None) if spread is None else (spread.rows[at], spread.columns[at])
        found[role] = {**counted.model_dump(), "in_fullest_rows": rows, "in_fullest_columns": columns}
    return found


def roles_table(roles: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Show the `role_counts` of a region."""
    rows = []
    for role, found in roles.items():
        share = found["entries"] / found["numel"] if found["numel"] else None
        lines = found["in_fullest_rows"], found["in_fullest_columns"]
        rows.append(Row(as_cells(role, found["entries"], found["numel"], share, *lines)))
    return Grid("Roles", ("role", "entries", "of", "share", "in 1 % rows", "in 1 % columns"), rows)


def dimensions_table(region: RegionReport) -> Grid:
    """Show the residual dimensions that hold most entries."""
    heads = ("dimension", "entries", "of", "share", "stands out in tensors")
    rows = [
        Row(as_cells(Cell(str(item.index), item.index), item.hits, item.slots, item.hits / item.slots, item.tensors))
        for item in region.dimensions
    ]
    return Grid("Residual dimensions", heads, rows, f"Those of {region.hidden_size or 0:,} that hold most entries.")
