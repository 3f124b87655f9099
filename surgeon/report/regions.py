"""Regions in the report, as entries and as tables: what they hold, where it crowds, and how far they coincide."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from surgeon.checkpoint.naming import Place
from surgeon.region.dimensions import SPREAD_AT, Cell, Dimension, Spread, Trace, profile, random_like
from surgeon.region.overlap import likenesses
from surgeon.region.region import Region
from surgeon.report import grid
from surgeon.report.entries import Entry
from surgeon.report.grid import Grid, Row, as_cells
from surgeon.report.words import percent, roles_in_order

MOST_COLUMNS = 600  # of a scan
_MOST_ROWS = 100_000  # roles times layers


class RoleCount(Entry):
    """Entries selected of a role's, over all layers."""

    entries: int
    numel: int


class Scan(Entry):
    """How a region runs along the residual stream: a row per role and layer, a column per dimension, or per few.

    `levels` holds a byte per cell, row by row, compressed by zlib, in base64: the share of the dimension's entries
    there that are selected, as 255 times its square root. Where a column stands for `width` neighbouring dimensions
    it has the share of the fullest of them, so that a single dimension stays as bright as it is.
    """

    rows: list[tuple[int | None, str]]
    columns: int
    width: int
    levels: str

    def shares(self) -> NDArray[np.float64]:
        """Return the shares: float64 of shape (rows, columns), exact to about 1/255 of their square root."""
        levels = np.frombuffer(self._unpacked(), dtype=np.uint8)
        shares: NDArray[np.float64] = np.square(levels / 255.0).reshape(len(self.rows), self.columns)
        return shares

    def _unpacked(self) -> bytes:
        """Return a byte per cell; what would unpack to more is not unpacked."""
        cells = len(self.rows) * self.columns
        return zlib.decompressobj().decompress(base64.b64decode(self.levels), cells + 1)

    @model_validator(mode="after")
    def _levels_are_whole(self) -> Scan:
        if not 0 < self.columns <= MOST_COLUMNS or len(self.rows) > _MOST_ROWS:
            raise ValueError("a scan has too many rows or columns")
        try:
            whole = len(self._unpacked()) == len(self.rows) * self.columns
        except (ValueError, zlib.error):
            whole = False
        if not whole:
            raise ValueError("the levels of a scan do not fit its rows and columns")
        return self


class RegionReport(Entry):
    """A region as it was cut. `fraction` is the density reached: selected / in scope.

    `spread_at` are shares of rows or columns; `spreads` says how many entries they hold per role, and `chance` how many
    they would hold of as many entries drawn at random in each tensor (seed 0): few entries crowd a little by chance.
    `dimensions` are the residual dimensions that hold most entries.
    """

    fraction: float
    entries: int
    numel: int
    tensors: int
    roles: dict[str, RoleCount]
    origin: str
    cells: list[Cell] = []
    spread_at: list[float] = []
    spreads: dict[str, Spread] = {}
    chance: dict[str, Spread] = {}
    hidden_size: int | None = None
    dimensions: list[Dimension] = []
    scan: Scan | None = None

    @model_validator(mode="after")
    def _spreads_are_whole(self) -> RegionReport:
        """Each spread has a value for every share, also for the hundredth that is shown."""
        lines = [
            line for spread in (*self.spreads.values(), *self.chance.values()) for line in (spread.rows, spread.columns)
        ]
        if any(len(line) != len(self.spread_at) for line in lines) or (lines and 0.01 not in self.spread_at):
            raise ValueError("spreads do not fit spread_at")
        return self


class OverlapReport(Entry):
    """Two regions: the Jaccard index of their entries, and that of random entries in their numbers."""

    left: str
    right: str
    jaccard: float
    by_chance: float


def region_report(
    region: Region, config: Mapping[str, Any], origin: str, places: Mapping[str, Place] | None = None
) -> RegionReport:
    """Describe a region; `config` is that of its model, `origin` how it was selected.

    `places` say what its tensors are, where more than their names is known.
    """
    described = profile(region, config, places=places)
    roles: dict[str, RoleCount] = {}
    for cell in described.cells:
        known = roles.get(cell.role, RoleCount(entries=0, numel=0))
        roles[cell.role] = RoleCount(entries=known.entries + cell.entries, numel=known.numel + cell.numel)
    return RegionReport(
        fraction=region.density(),
        entries=region.entries,
        numel=region.numel,
        tensors=len(region),
        roles=roles,
        origin=origin,
        cells=list(described.cells),
        spread_at=list(SPREAD_AT),
        spreads=dict(described.spreads),
        chance=dict(profile(region, config, entries=random_like(region), places=places).spreads),
        hidden_size=described.hidden_size,
        dimensions=list(described.dimensions),
        scan=scan_report(described.traces),
    )


def scan_report(traces: Sequence[Trace]) -> Scan | None:
    """Pack the traces of a region, role by role, each from the first layer to the last; None if there are none."""
    roles = roles_in_order([trace.role for trace in traces])
    inside = sorted(
        (trace for trace in traces if trace.layer is not None),
        key=lambda trace: (roles.index(trace.role), trace.layer),
    )
    if not inside:
        return None
    shares = np.stack([trace.shares for trace in inside])
    width = math.ceil(shares.shape[1] / MOST_COLUMNS)
    shares = np.maximum.reduceat(shares, np.arange(0, shares.shape[1], width), axis=1)
    levels = np.rint(255 * np.sqrt(shares)).astype(np.uint8)
    return Scan(
        rows=[(trace.layer, trace.role) for trace in inside],
        columns=shares.shape[1],
        width=width,
        levels=base64.b64encode(zlib.compress(levels.tobytes(), 9)).decode("ascii"),
    )


def overlap_reports(regions: Mapping[str, Region]) -> list[OverlapReport]:
    """Compare every two regions of a run."""
    return [
        OverlapReport(left=left, right=right, jaccard=likeness.jaccard, by_chance=likeness.by_chance)
        for (left, right), likeness in likenesses(regions).items()
    ]


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
    counts = {}
    for role in roles_in_order(region.roles):
        counted, spread = region.roles[role], region.spreads.get(role)
        rows, columns = (None, None) if spread is None else (spread.rows[at], spread.columns[at])
        counts[role] = {**counted.model_dump(), "in_fullest_rows": rows, "in_fullest_columns": columns}
    return counts


def roles_table(roles: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Show the `role_counts` of a region."""
    rows = []
    for role, counted in roles.items():
        share = counted["entries"] / counted["numel"] if counted["numel"] else None
        lines = counted["in_fullest_rows"], counted["in_fullest_columns"]
        rows.append(Row(as_cells(role, counted["entries"], counted["numel"], share, *lines)))
    return Grid("Roles", ("role", "entries", "of", "share", "in 1 % rows", "in 1 % columns"), rows)


def dimensions_table(region: RegionReport) -> Grid:
    """Show the residual dimensions that hold most entries."""
    heads = ("dimension", "entries", "of", "share", "stands out in tensors")
    rows = [
        Row(
            as_cells(
                grid.Cell(str(item.index), item.index), item.hits, item.slots, item.hits / item.slots, item.tensors
            )
        )
        for item in region.dimensions
    ]
    return Grid("Residual dimensions", heads, rows, f"Those of {region.hidden_size or 0:,} that hold most entries.")
