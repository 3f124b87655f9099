"""What a checkpoint or a region file holds, told from headers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from surgeon.checkpoint import Checkpoint
from surgeon.naming import place
from surgeon.region import FORMAT, Region
from surgeon.report.terminal import table
from surgeon.report.words import size
from surgeon.storage import read_header


def look_at(target: str) -> dict[str, Any]:
    """Describe a checkpoint or a region file as plain data.

    Raises:
        SurgeonError: nothing readable is there.
    """
    path = Path(target).expanduser()
    if path.is_file() and path.suffix == ".safetensors" and read_header(path).metadata.get("format") == FORMAT:
        return _region(path)
    return _checkpoint(Checkpoint.open(target))


def _region(path: Path) -> dict[str, Any]:
    region = Region.load(path)
    roles: dict[str, dict[str, int]] = {}
    for name in region:
        # Roles are told from names alone here, since a region file does not carry the model's config.
        info = read_header(path).tensors[name]
        role = place(info, {}).role
        count = roles.setdefault(role, {"entries": 0, "numel": 0})
        count["entries"] += region[name].entries
        count["numel"] += region[name].numel
    provenance = {key: value for key, value in region.metadata.items() if key != "source_sha256"}
    return {
        "kind": "region", "path": str(path), "tensors": len(region), "entries": region.entries, "numel": region.numel,
        "density": region.density(), "bytes": path.stat().st_size, "roles": roles, "provenance": provenance,
    }  # fmt: skip


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    roles: dict[str, dict[str, int]] = {}
    layers = set()
    for info in checkpoint.tensors.values():
        where = place(info, checkpoint.config)
        count = roles.setdefault(where.role, {"tensors": 0, "numel": 0})
        count["tensors"] += 1
        count["numel"] += info.numel
        if where.layer is not None:
            layers.add(where.layer)
    return {
        "kind": "checkpoint",
        "source": checkpoint.source.name,
        "revision": checkpoint.source.revision,
        "model_type": checkpoint.config.get("model_type"),
        "layers": len(layers),
        "parameters": sum(info.numel for info in checkpoint.tensors.values()),
        "tensors": len(checkpoint.tensors),
        "shards": len(checkpoint.headers),
        "bytes": checkpoint.data_bytes,
        "dtypes": dict(Counter(info.dtype for info in checkpoint.tensors.values())),
        "ties": [list(group) for group in checkpoint.ties],
        "roles": roles,
    }


def inspection_view(found: dict[str, Any]) -> Group:
    """Show what `look_at` found."""
    skipped = ("roles", "provenance", "bytes")
    lines = [f"{key:<12} {value}" for key, value in found.items() if key not in skipped and value not in (None, [])]
    lines.append(f"{'size':<12} {size(found['bytes'])}")
    lines += [f"{key:<12} {value}" for key, value in found.get("provenance", {}).items()]
    first, second = ("entries", "numel") if found["kind"] == "region" else ("tensors", "numel")
    roles = table("Roles", "role", first, "parameters")
    for role, count in found["roles"].items():
        roles.add_row(role, f"{count[first]:,}", f"{count[second]:,}")
    return Group(Text("\n".join(lines)), Text(""), roles)
