"""Regions as entries of the report: how much of what they hold, where it crowds, and how far they coincide."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from surgeon.checkpoint.naming import Place
from surgeon.region.dimensions import SPREAD_AT, Trace, profile, random_like
from surgeon.region.overlap import likenesses
from surgeon.region.region import Region
from surgeon.report.region_entries import MOST_COLUMNS, OverlapReport, RegionReport, RoleCount, Scan
from surgeon.report.words import roles_in_order


def region_report(
    region: Region, config: Mapping[str, Any], origin: str, places: Mapping[str, Place] | None = None
) -> RegionReport:
    """Describe a region; `config` is that of its model, `origin` how it was selected.

    `places` say what its tensors are, where more than their names is known.
    """
    found = profile(region, config, places=places)
    roles: dict[str, RoleCount] = {}
    for cell in found.cells:
        known = roles.get(cell.role, RoleCount(entries=0, numel=0))
        roles[cell.role] = RoleCount(entries=known.entries + cell.entries, numel=known.numel + cell.numel)
    return RegionReport(
        fraction=region.density(),
        entries=region.entries,
        numel=region.numel,
        tensors=len(region),
        roles=roles,
        origin=origin,
        cells=list(found.cells),
        spread_at=list(SPREAD_AT),
        spreads=dict(found.spreads),
        chance=dict(profile(region, config, entries=random_like(region), places=places).spreads),
        hidden_size=found.hidden_size,
        dimensions=list(found.dimensions),
        scan=scan_report(found.traces),
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
        OverlapReport(left=left, right=right, jaccard=found.jaccard, by_chance=found.by_chance)
        for (left, right), found in likenesses(regions).items()
    ]
