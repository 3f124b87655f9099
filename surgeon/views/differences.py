"""Two checkpoints, or two regions, side by side: as tables for people and as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from surgeon.diff.comparison import Comparison
from surgeon.diff.diff import KINDS, Diff, Kind, TensorDiff
from surgeon.diff.entries import Change
from surgeon.errors import present, shorten
from surgeon.region.overlap import Overlap, TensorOverlap
from surgeon.region.patch import Patch
from surgeon.report.words import percent, roles_in_order
from surgeon.views.terminal import sparkline, table, told

SHOWN = 5  # tensors listed unless details are asked for, so that all fits one screen


def comparison_view(comparison: Comparison, details: bool) -> Group:
    """Show what differs: one screen, or every layer and tensor with `details`."""
    diff, overlap, patch = comparison.checkpoints, comparison.overlap, comparison.patch
    if diff is None:
        return _overlap_view(present(overlap), comparison.names, details)
    parts: list[RenderableType] = [_headline(diff)]
    if diff.total.changed:
        parts.append(_changes_table("By role", "role", _in_order(diff.by_role())))
        if details:
            layers = {"none" if k is None else str(k): c for k, c in sorted(diff.by_layer().items(), key=_layer_key)}
            parts.append(_changes_table("By layer", "layer", layers))
            parts.append(_dimensions_table(diff))
        changed = [tensor for tensor in diff.tensors if tensor.change.changed]
        largest = sorted(changed, key=lambda tensor: -(tensor.change.relative or 0.0))
        parts.append(_tensors_table(changed if details else largest[:SHOWN], details))
        if len(changed) > SHOWN and not details:
            parts.append(Text(f"{len(changed) - SHOWN} more tensors, and the layers: --details", style="dim"))
    odd = [tensor for tensor in diff.tensors if tensor.kind not in ("same", "changed")]
    parts += [_odd_line(tensor) for tensor in (odd if details else odd[: 2 * SHOWN])]
    if len(odd) > 2 * SHOWN and not details:
        parts.append(Text(f"and {len(odd) - 2 * SHOWN} more: --details", style="dim"))
    codes, scales = (sum(tensor.stored[i] for tensor in diff.tensors if tensor.stored) for i in range(2))
    if codes or scales:
        parts.append(Text(f"stored   {codes:,} codes and {scales:,} scales differ; all else here is of their values"))
    if overlap is not None:
        parts.append(_overlap_view(overlap, diff.regions, details))
    if patch is not None:
        parts.append(_patch_line(patch))
    return Group(*parts)


def _patch_line(patch: Patch) -> Text:
    """Say what was written as a patch, and what it could not carry."""
    line = told(f"patch    {patch.path}: {patch.region.entries:,} entries in {len(patch.tensors):,} tensors")
    if patch.left_out:
        names = shorten([f"{name} ({reason})" for name, reason in patch.left_out.items()])
        line.append("\n")
        line.append(told(f"         left out, since a patch cannot carry it: {names}", style="yellow"))
    return line


def _layer_key(item: tuple[int | None, Change]) -> int:
    return -1 if item[0] is None else item[0]


def _in_order(changes: Mapping[str, Change]) -> dict[str, Change]:
    return {role: changes[role] for role in roles_in_order(changes)}


def _headline(diff: Diff) -> Text:
    lines = [f"before   {diff.before.source.name}", f"after    {diff.after.source.name}"]
    counts = [f"{diff.count(kind):,} {_words(kind)}" for kind in KINDS if diff.count(kind)]
    lines.append(f"tensors  {', '.join(counts)}")
    whole = diff.total
    if not whole.entries:
        lines.append("entries  none compared: no tensor of one is in the other with the same shape")
    elif not whole.changed:
        lines.append(f"entries  no difference in {whole.entries:,}")
    else:
        lines.append(
            f"entries  {whole.changed:,} of {whole.entries:,} changed ({percent(whole.changed / whole.entries)})"
        )
        odd = f", {whole.not_finite:,} are or were not finite" if whole.not_finite else ""
        lines.append(f"         {whole.zeroed:,} became zero, {whole.sign_flips:,} changed sign{odd}")
        lines.append(
            f"size     L2 {whole.l2:.4g}, {_relative(whole)} of the weights compared; largest {whole.largest:.4g}"
        )
    lines += [line for i in range(len(diff.regions)) for line in _region_lines(diff, i)]
    layers = [(layer, change) for layer, change in diff.by_layer().items() if layer is not None]
    if whole.changed and len(layers) > 1:
        lines.append(_layers_line(sorted(layers)))
    dimensions = diff.dimensions(5)
    if dimensions:
        shown = ", ".join(f"{index} ({count:,})" for index, count, _ in dimensions)
        lines.append(f"residual {shown}: dimension (entries)")
    if diff.config:
        keys = list(diff.config)
        lines.append(f"config   differs in {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}")
    return told(*lines)


def _layers_line(layers: Sequence[tuple[int, Change]]) -> str:
    """Draw the relative change from the first layer to the last; the table of --details has the figures."""
    sizes = [change.relative or 0.0 for _, change in layers]
    span = f"{percent(min(sizes))} to {percent(max(sizes))}"
    return f"layers   {layers[0][0]}-{layers[-1][0]} {sparkline(sizes)} relative change, {span}"


def _words(kind: Kind) -> str:
    return "renamed and changed" if kind == "renamed_changed" else kind


def _relative(change: Change) -> str:
    return "-" if change.relative is None else percent(change.relative)


def _region_lines(diff: Diff, region: int) -> list[str]:
    inside, whole, entries = diff.inside(region), diff.total, diff.region_entries[region]
    name = diff.regions[region]
    if not whole.changed:
        return [f"region   {name}: {entries:,} entries, none changed"]
    squared = percent(inside.delta_square / whole.delta_square) if whole.delta_square else "-"
    reached = percent(inside.changed / entries) if entries else "-"
    return [
        f"region   {name}: {percent(inside.changed / whole.changed)} of the changed entries and {squared} of the",
        f"         squared change lie inside; {reached} of its {entries:,} entries changed",
    ]


def _changes_table(title: str, first: str, changes: Mapping[str, Change]) -> Table:
    rows = table(title, first, "changed", "of", "share", "L2", "relative", "largest")
    for label, change in changes.items():
        rows.add_row(label, *_cells(change))
    return rows


def _cells(change: Change) -> list[str]:
    if not change.changed:
        return ["0", f"{change.entries:,}", "-", "-", "-", "-"]
    share = percent(change.changed / change.entries)
    sizes = [f"{change.l2:.3g}", _relative(change), f"{change.largest:.3g}"]
    return [f"{change.changed:,}", f"{change.entries:,}", share, *sizes]


def _tensors_table(tensors: list[TensorDiff], details: bool) -> Table:
    """List tensors; row and column are those changed most."""
    title = "Tensors" if details else "Tensors that changed most, relative to their size"
    spare = ["row", "column", "sign flips", "L2", "largest"]
    rows = table(
        title, "tensor", "changed", "share", "relative", "sign flips", "L2", "largest", *spare[:2], spare=spare
    )
    for tensor in tensors:
        change = tensor.change
        rows.add_row(
            _short(tensor.name), f"{change.changed:,}", percent(change.changed / change.entries), _relative(change),
            f"{change.sign_flips:,}", f"{change.l2:.3g}", f"{change.largest:.3g}",
            _fullest(tensor.rows), _fullest(tensor.columns),
        )  # fmt: skip
    return rows


def _short(name: str) -> str:
    """Shorten a tensor's name for a table: what nearly all names share is left out."""
    return name.removesuffix(".weight").removeprefix("model.")


def _dimensions_table(diff: Diff) -> Table:
    rows = table("By residual dimension", "dimension", "changed", "in tensors")
    for index, count, tensors in diff.dimensions(12):
        rows.add_row(str(index), f"{count:,}", f"{tensors:,}")
    return rows


def _fullest(counts: tuple[tuple[int, int], ...]) -> str:
    return f"{counts[0][0]} ({counts[0][1]:,})" if counts else "-"


def _odd_line(tensor: TensorDiff) -> Text:
    """Say of a tensor that is not simply the same or changed what is the matter with it."""
    change = tensor.change
    before, after = present(tensor.before or tensor.after), present(tensor.after or tensor.before)
    what = {
        "missing": "only in the first",
        "extra": "only in the second",
        "renamed": f"same content under the name {after.name}",
        "renamed_changed": f"{change.changed:,} of {change.entries:,} entries differ from {after.name}",
        "reshaped": f"{list(before.shape)} became {list(after.shape)}; entries not compared",
        "retyped": f"{before.dtype} became {after.dtype}; {change.changed:,} values differ",
    }[tensor.kind]
    note = f" ({tensor.note})" if tensor.note else ""
    return Text.assemble((f"{_words(tensor.kind):<8} ", "yellow"), told(f"{tensor.name}: {what}{note}"))


def _overlap_view(overlap: Overlap, names: tuple[str, ...], details: bool) -> Group:
    """Show how far two regions coincide."""
    left, right = names
    most = sorted(overlap.tensors, key=lambda item: -item.jaccard)
    shown = overlap.tensors if details else most[:SHOWN]
    parts: list[RenderableType] = [_overlap_table(shown, overlap.total, names)]
    if len(overlap.tensors) > SHOWN and not details:
        parts.append(Text(f"the {SHOWN} tensors that coincide most; all of them: --details", style="dim"))
    for label, only in ((left, overlap.only_left), (right, overlap.only_right)):
        if only:
            parts.append(told(f"{len(only)} tensors only in {label}, such as {next(iter(only))}"))
    legend = (
        "rows, columns: shared part of the entries' distribution over them, 1 if they crowd into the same ones; x: "
        "times what the same number of random entries would share"
    )
    return Group(*parts, Text(legend, style="dim"))


def _beside_chance(value: float, chance: float) -> str:
    return f"{value:.2f} (x{value / chance:.2f})" if chance else f"{value:.2f}"


def _overlap_table(shown: Sequence[TensorOverlap], total: TensorOverlap, names: tuple[str, ...]) -> Table:
    """List tensors and their total; the columns that count entries go first where room is short."""
    heads = ("tensor", *names, "both", "Jaccard", "by chance", "rows", "columns")
    rows = table(" and ".join(names), *heads, spare=("both", *names))
    for item in (*shown, total):
        if item is total:
            rows.add_section()
        rows.add_row(
            _short(item.name), f"{item.left:,}", f"{item.right:,}", f"{item.shared:,}",
            f"{item.jaccard:.4f}", f"{item.by_chance:.4f}",
            _beside_chance(item.rows, item.rows_by_chance), _beside_chance(item.columns, item.columns_by_chance),
        )  # fmt: skip
    return rows


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Return what differs as plain data, for `--json`; tensors that are the same are only counted."""
    diff, overlap, patch = comparison.checkpoints, comparison.overlap, comparison.patch
    if diff is None:
        return _overlap_data(present(overlap))
    data: dict[str, Any] = {
        "before": diff.before.source.name,
        "after": diff.after.source.name,
        "identical": diff.identical,
        "tensor_counts": {kind: diff.count(kind) for kind in KINDS},
        "total": _change_data(diff.total),
        "regions": {
            name: {"entries": diff.region_entries[i], "inside": _change_data(diff.inside(i))}
            for i, name in enumerate(diff.regions)
        },
        "roles": {role: _change_data(change) for role, change in _in_order(diff.by_role()).items()},
        "layers": [
            {"layer": layer, **_change_data(change)}
            for layer, change in sorted(diff.by_layer().items(), key=_layer_key)
        ],
        "dimensions": [
            {"dimension": index, "changed": count, "tensors": tensors} for index, count, tensors in diff.dimensions(24)
        ],
        "config": {key: list(values) for key, values in diff.config.items()},
        "tensors": [_tensor_data(diff, tensor) for tensor in diff.tensors if tensor.kind != "same"],
    }
    if overlap is not None:
        data["overlap"] = _overlap_data(overlap)
    if patch is not None:
        data["patch"] = {
            "path": str(patch.path), "tensors": len(patch.tensors), "entries": patch.region.entries,
            "left_out": dict(patch.left_out),
        }  # fmt: skip
    return {**data, "notes": list(comparison.remarks)}


def _fields(item: object, names: str) -> dict[str, Any]:
    return {name: getattr(item, name) for name in names.split()}


def _change_data(change: Change) -> dict[str, Any]:
    return _fields(change, "entries changed zeroed sign_flips not_finite l2 relative largest")


def _tensor_data(diff: Diff, tensor: TensorDiff) -> dict[str, Any]:
    sides = {
        side: info and {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}
        for side, info in (("before", tensor.before), ("after", tensor.after))
    }
    return {
        "name": tensor.name, "kind": tensor.kind, "note": tensor.note, **sides,
        "layer": tensor.where.layer, "role": tensor.where.role,
        "stored": None if tensor.stored is None else dict(zip(("codes", "scales"), tensor.stored, strict=True)),
        **_change_data(tensor.change),
        "regions": {name: _change_data(part) for name, part in zip(diff.regions, tensor.inside, strict=False)},
        "rows": [list(pair) for pair in tensor.rows], "columns": [list(pair) for pair in tensor.columns],
    }  # fmt: skip


def _overlap_data(overlap: Overlap) -> dict[str, Any]:
    return {
        **_overlap_fields(overlap.total),
        "only_left": dict(overlap.only_left),
        "only_right": dict(overlap.only_right),
        "tensors": {item.name: _overlap_fields(item) for item in overlap.tensors},
    }


def _overlap_fields(item: TensorOverlap) -> dict[str, Any]:
    return _fields(item, "numel left right shared jaccard by_chance rows columns rows_by_chance columns_by_chance")
