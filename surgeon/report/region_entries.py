"""Regions as parts of a report: how much of what they hold, where it lies, and how far they coincide."""

from __future__ import annotations

import base64
import zlib

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from surgeon.region.dimensions import Cell, Dimension, Spread
from surgeon.report.entry import Entry

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
