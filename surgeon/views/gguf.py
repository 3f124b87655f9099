"""What a GGUF file holds, told from its head: how its tensors are quantized, and whether zero is a code there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from surgeon.formats.gguf import read_gguf
from surgeon.report.words import percent, size
from surgeon.views.terminal import facts, table

_REMEDY = "read only: to cut it, load it in transformers with `gguf_file=...` and `save_pretrained` it"


def look_at_gguf(path: Path) -> dict[str, Any]:
    """Describe a GGUF file.

    Raises:
        CheckpointError: it is none.
    """
    file = read_gguf(path)
    kinds: dict[str, dict[str, Any]] = {}
    for tensor in file.tensors:
        quantization = tensor.quantization
        row = kinds.setdefault(quantization.name, {"tensors": 0, "numel": 0, "bytes": 0, "zero": quantization.zero})
        row["tensors"] += 1
        row["numel"] += tensor.numel
        row["bytes"] += tensor.nbytes
    return {
        "kind": "gguf", "path": str(path), "bytes": file.size,
        "architecture": str(file.metadata.get("general.architecture", "unknown")),
        "name": str(file.metadata.get("general.name", "")) or None,
        "tensors": len(file.tensors), "parameters": sum(tensor.numel for tensor in file.tensors),
        "quantizations": kinds, "surgery": _REMEDY,
    }  # fmt: skip


def gguf_view(data: Mapping[str, Any]) -> Group:
    """Render it."""
    head = facts(
        ("gguf", data["path"]),
        ("model", f"{data['architecture']}{', ' + data['name'] if data['name'] else ''}"),
        ("size", f"{data['parameters']:,} parameters in {data['tensors']:,} tensors, {size(data['bytes'])}"),
        ("surgery", data["surgery"]),
    )
    rows = table("Quantizations", "type", "tensors", "parameters", "share", "zero is a code")
    for name, row in data["quantizations"].items():
        share = percent(row["numel"] / data["parameters"]) if data["parameters"] else "-"
        rows.add_row(name, f"{row['tensors']:,}", f"{row['numel']:,}", share, row["zero"])
    return Group(head, Text(""), rows)
