"""What a checkpoint, region, patch, freeze bundle, variant, output, report or recipe holds, told from headers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.anatomy.scope import left_out, scope, unknown_kinds
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Coded, is_code, parts_of
from surgeon.checkpoint.quantized import notes_on, quantization, unread_quantization
from surgeon.checkpoint.sources import local_file, look_again
from surgeon.checkpoint.storage import DTYPE_BITS
from surgeon.errors import shorten
from surgeon.freeze.bundle import FOLDER, MANIFEST, REGION, Bundle
from surgeon.recipe.reading import load_recipe
from surgeon.recipe.schema import Recipe, VerifySpec
from surgeon.region.dimensions import hidden_size
from surgeon.region.patch import Patch, is_patch_file
from surgeon.region.region import Region, is_region_file
from surgeon.report.data import Report
from surgeon.report.regions import CROWDS, region_report, regions_table, role_counts, roles_table
from surgeon.report.tables import GLANCE, variants_table
from surgeon.report.words import count, percent, roles_in_order, size
from surgeon.views.gguf import gguf_view, look_at_gguf
from surgeon.views.terminal import expectation_line, facts, grid_table, sparkline, table
from surgeon.write.marker import MARKER, Marker

DIMENSIONS_SHOWN = 8  # that fit on a line or two


def look_at(target: str) -> dict[str, Any]:
    """Describe what is there; `kind` says what it is: a checkpoint, variant, region, patch, bundle, output or recipe.

    Raises:
        SurgeonError: nothing readable is there.
    """
    look_again()
    path = local_file(target)
    if is_patch_file(path):
        return _patch(path)
    if is_region_file(path):
        return _region(path)
    if (path / "report.json").is_file():
        return _output(path / "report.json")
    if path.is_file() and path.suffix == ".json":
        return _output(path)
    if path.is_file() and path.suffix == ".gguf":
        return look_at_gguf(path)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return _recipe(path)
    if (path / MANIFEST).is_file() and (path / REGION).is_file():
        return _bundle(path)
    checkpoint = Checkpoint.open(target)
    data, path = _checkpoint(checkpoint), checkpoint.source.path
    if (path / MARKER).is_file():
        data = {**data, "kind": "variant", **_marker(path)}
    bundle = _bundle_of(checkpoint)
    if bundle is not None:
        data["frozen"] = _frozen(bundle)
    return data


def _bundle_of(checkpoint: Checkpoint) -> Bundle | None:
    """Return the freeze bundle beside the weights; of a repository on the Hub only that folder is fetched."""
    path = checkpoint.source.path
    if (path / FOLDER / MANIFEST).is_file():
        return Bundle.load(path)
    if not (checkpoint.is_remote and (path / MARKER).is_file()):
        return None
    marker = Marker.read(path)
    return Bundle.load(checkpoint.source.pinned) if marker.freeze or marker.train_only else None


def _bundle(path: Path) -> dict[str, Any]:
    """Describe a freeze bundle: its region, and what its manifest says of the entries."""
    frozen = _frozen(Bundle.load(path))
    return {**_region(path / REGION), "kind": "bundle", "path": str(path), "frozen": frozen}


def _patch(path: Path) -> dict[str, Any]:
    """Describe a patch: the region of its entries, and what its values are and were made for."""
    patch = Patch.load(path)
    dtypes = dict(Counter(tensor.dtype for tensor in patch.tensors.values()))
    return {**_region(path), "kind": "patch", "dtypes": dtypes, "left_out": dict(patch.left_out)}


def _frozen(bundle: Bundle) -> dict[str, Any]:
    widths = {name: DTYPE_BITS[tensor.dtype] // 8 for name, tensor in bundle.tensors.items()}
    return {
        "base": bundle.base,
        "tensors": len(bundle.tensors),
        "entries": sum(tensor.entries for tensor in bundle.tensors.values()),
        "bytes_kept": sum(tensor.entries * widths[name] for name, tensor in bundle.tensors.items()),
        "ties": [list(group) for group in bundle.ties],
        "trained": None if bundle.trained is None else bundle.trained.entries,
    }


def _region(path: Path) -> dict[str, Any]:
    region = Region.load(path)
    # Names and shapes tell the rest; only a transposed family needs to be named by the provenance.
    report = region_report(region, {"model_type": region.metadata.get("model_type")}, "file")
    layers: dict[int, dict[str, int]] = {}
    for cell in report.cells:
        if cell.layer is not None:
            counted = layers.setdefault(cell.layer, {"layer": cell.layer, "entries": 0, "numel": 0})
            counted["entries"] += cell.entries
            counted["numel"] += cell.numel
    return {
        "kind": "region", "path": str(path), "tensors": len(region), "entries": region.entries, "numel": region.numel,
        "density": region.density(), "bytes": path.stat().st_size,
        "encodings": dict(Counter(region[name].encoding for name in region)),
        "roles": role_counts(report), "layers": [layers[layer] for layer in sorted(layers)],
        "hidden_size": report.hidden_size, "dimensions": [asdict(item) for item in report.dimensions],
        "provenance": {key: value for key, value in region.metadata.items() if key != "source_sha256"},
    }  # fmt: skip


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    places = anatomy_of(checkpoint).places
    roles: dict[str, dict[str, int]] = {}
    for name, info in checkpoint.tensors.items():
        count = roles.setdefault(places[name].role, {"tensors": 0, "numel": 0})
        count["tensors"] += 1
        count["numel"] += info.numel
    reach = scope(checkpoint)
    return {
        "kind": "checkpoint",
        "source": checkpoint.source.name,
        "revision": checkpoint.source.revision,
        "model_type": checkpoint.config.get("model_type"),
        "quantization": quantization(checkpoint),
        "unread": unread_quantization(checkpoint),
        "layers": len({where.layer for where in places.values() if where.layer is not None}),
        "hidden_size": hidden_size(
            {name: info.shape for name, info in checkpoint.tensors.items() if not is_code(info.dtype)}, places
        ),
        "parameters": sum(info.numel for info in checkpoint.tensors.values()),
        "tensors": len(checkpoint.tensors),
        "shards": len(checkpoint.headers),
        "bytes": checkpoint.data_bytes,
        "dtypes": dict(Counter(info.dtype for info in checkpoint.tensors.values())),
        "stored_dtypes": dict(Counter(info.dtype for info in checkpoint.stored.values())),
        "coded": _coded(checkpoint),
        "ties": [list(group) for group in checkpoint.ties],
        "reach": {"tensors": len(reach.tensors), "numel": sum(info.numel for info in reach.tensors)},
        "roles": roles,
        "unknown_kinds": unknown_kinds(checkpoint),
        "left_out": left_out(checkpoint),
        "files_left_out": dict(checkpoint.left_out),
        "notes": notes_on(checkpoint),
    }


def _coded(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Say how many weights are quantized in formats that are known; None if none are."""
    coded = [info for info in checkpoint.tensors.values() if isinstance(info, Coded)]
    if not coded:
        return None
    numel, blocks = sum(info.numel for info in coded), sum(info.codec.blocks(info) for info in coded)
    stored = sum(part.nbytes for info in coded for part in parts_of(info))
    return {"tensors": len(coded), "numel": numel, "blocks": blocks, "bits_per_parameter": 8 * stored / numel}


def _marker(folder: Path) -> dict[str, Any]:
    """Return what a written variant says of itself."""
    marker = Marker.read(folder)
    return {
        "variant": marker.variant,
        "operations": marker.operations,
        "made_from": marker.model.model_dump(),
        "recipe": marker.recipe.get("name"),
        "edited": {"tensors": marker.tensors, "entries": marker.entries},
    }


def _output(path: Path) -> dict[str, Any]:
    """Describe an output folder by its report."""
    report = Report.load(path)
    # By way of text, since only there are inf and nan the strings that JSON can hold.
    dumped = json.loads(report.model_dump_json())
    return {"kind": "output", "path": str(path.parent), "passed": report.passed, "report": dumped}


def _recipe(path: Path) -> dict[str, Any]:
    """Describe a recipe as it is written; the model is not opened."""
    recipe = load_recipe(path).as_written
    return {"kind": "recipe", "path": str(path), "recipe": json.loads(recipe.model_dump_json(by_alias=True))}


def inspection_view(data: Mapping[str, Any]) -> Group:
    """Show what `look_at` tells."""
    views = {
        "region": _region_view,
        "bundle": _region_view,
        "patch": _region_view,
        "output": _output_view,
        "recipe": _recipe_view,
        "gguf": gguf_view,
    }
    return views.get(data["kind"], _checkpoint_view)(data)


def _recipe_view(data: Mapping[str, Any]) -> Group:
    recipe = Recipe.model_validate(data["recipe"])
    corpus = recipe.corpus if isinstance(recipe.corpus, str) else ", ".join(recipe.corpus)
    head = facts(
        ("recipe", f"{recipe.name} ({data['path']})"), ("model", recipe.model), ("corpus", corpus),
        ("measures", _verify_words(recipe.verify)), ("output", recipe.output),
        ("push", recipe.push.repo if recipe.push is not None else None),
    )  # fmt: skip
    regions = table("Regions", "region", "as", words=["as"])
    for name, region in recipe.regions.items():
        given = region.model_dump(by_alias=True, exclude_defaults=True)
        regions.add_row(name, _plain(given))
    variants = table("Variants", "variant", "operations", "written", words=["operations", "written"])
    for name, variant in recipe.variants.items():
        done = [line for operation in variant.operations for line in operation.described()]
        done += [
            f"{key} {held}" for key, held in (("freeze", variant.freeze), ("train only", variant.train_only)) if held
        ]
        swept = f", swept over {', '.join(variant.sweep)}" if variant.sweep else ""
        written = "as a patch" if variant.write == "patch" else "yes" if variant.whole else "no"
        written = f"in {variant.plain_dtype}" if variant.dequantized else written
        variants.add_row(name, ", ".join(done) + swept, written)
    hint = Text("`surgeon plan` says what it would do, and what that takes", style="dim")
    return Group(head, Text(""), *([regions] if recipe.regions else []), *([variants] if recipe.variants else []), hint)


def _verify_words(verify: VerifySpec | None) -> str:
    if verify is None:
        return "nothing"
    languages = "all languages" if verify.languages == "all" else ", ".join(verify.languages)
    return f"{languages}, at most {verify.tokens} tokens each; {count(len(verify.expect), 'expectation')}"


def _region_view(data: Mapping[str, Any]) -> Group:
    provenance = data["provenance"]
    encodings = ", ".join(f"{count} as {name}" for name, count in data["encodings"].items())
    head = facts(
        ("freeze bundle" if data["kind"] == "bundle" else data["kind"], data["path"]),
        ("freezes", _frozen_line(data)),
        ("values", ", ".join(f"{name} ({count} tensors)" for name, count in data.get("dtypes", {}).items())),
        ("left out", shorten([f"{name} ({reason})" for name, reason in data.get("left_out", {}).items()])),
        ("entries", f"{data['entries']:,} of {data['numel']:,} ({percent(data['density'])})"),
        ("tensors", f"{data['tensors']:,} ({encodings}), {size(data['bytes'])}"),
        *((key, _plain(value)) for key, value in provenance.items()),
    )
    layers = data["layers"]
    lines = []
    if len(layers) > 1:
        densities = [item["entries"] / item["numel"] for item in layers]
        marks = f"{sparkline(densities)}  {percent(min(densities))} to {percent(max(densities))}"
        lines.append(("layers", f"{layers[0]['layer']}-{layers[-1]['layer']}  {marks}"))
    fullest = [
        f"{item['index']} ({item['hits']:,}, out in {item['tensors']})"
        for item in data["dimensions"][:DIMENSIONS_SHOWN]
    ]
    if fullest:
        lines.append(("residual", ", ".join(fullest)))
        explained = f"dimension (entries, tensors it stands out in), of {data['hidden_size']:,}"
        lines.append(("", explained))
    return Group(head, Text(""), grid_table(roles_table(data["roles"])), facts(*lines))


def _frozen_line(data: Mapping[str, Any]) -> str | None:
    frozen = data.get("frozen")
    if frozen is None:
        return None
    source = (frozen["base"] or {}).get("name")
    origin = f" of {source}" if source else ""
    entries = f"{frozen['entries']:,} entries in {frozen['tensors']:,} tensors{origin}"
    if frozen["trained"] is not None:
        return f"all but {frozen['trained']:,} entries, which alone train: {entries}"
    return f"{entries}; {size(frozen['bytes_kept'])} to keep"


def _plain(value: Any) -> str | None:
    """Show a value of the provenance on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return None if value is None else str(value)


def _checkpoint_view(data: Mapping[str, Any]) -> Group:
    pairs: list[tuple[str, str | None]] = [("checkpoint", data["source"])]
    if data["kind"] == "variant":
        pairs[0] = ("variant", f"{data['variant']} of recipe {data['recipe']}")
        operations = [" ".join(f"{key} {value}" for key, value in item.items()) for item in data["operations"]]
        edited = f"{data['edited']['entries']:,} entries in {data['edited']['tensors']:,} tensors"
        pairs += [("made from", data["made_from"]["source"]), ("edits", f"{', '.join(operations)}: {edited}")]
    reach = data["reach"]
    unread = data["unread"]
    quantized = f"the weights are quantized ({unread}): nothing can be cut here" if unread else None
    pairs += [
        ("revision", data["revision"]),
        ("family", f"{data['model_type'] or 'unknown'}, {data['layers']} layers, hidden size {data['hidden_size']}"),
        ("size", f"{data['parameters']:,} parameters, {size(data['bytes'])} in {data['shards']} file(s)"),
        ("dtypes", ", ".join(f"{name} ({count} tensors)" for name, count in data["dtypes"].items())),
        ("stored", _stored_words(data)),
        ("tied", "; ".join(_tie(group) for group in data["ties"])),
        ("freezes", _frozen_line(data)),
        ("unknown", "; ".join(data["unknown_kinds"])),
        ("left out", "; ".join(data["left_out"])),
        ("notes", "; ".join(data["notes"])),
        ("not read", "; ".join(f"{name} ({why})" for name, why in data["files_left_out"].items())),
        ("surgery", quantized or f"reaches {reach['numel']:,} parameters in {reach['tensors']} decoder tensors"),
    ]
    roles = table("Roles", "role", "tensors", "parameters", "share")
    for role in roles_in_order(list(data["roles"])):
        count = data["roles"][role]
        share = percent(count["numel"] / data["parameters"]) if data["parameters"] else "-"
        roles.add_row(role, f"{count['tensors']:,}", f"{count['numel']:,}", share)
    return Group(facts(*pairs), Text(""), roles)


def _stored_words(data: Mapping[str, Any]) -> str | None:
    coded = data["coded"]
    if coded is None:
        return None
    dtypes = ", ".join(f"{name} ({count})" for name, count in data["stored_dtypes"].items())
    return (
        f"{data['quantization']}; {coded['numel']:,} parameters in {coded['tensors']:,} tensors and "
        f"{coded['blocks']:,} blocks, {coded['bits_per_parameter']:.3g} bits each with scales; files hold {dtypes}"
    )


def _tie(group: list[str]) -> str:
    return " = ".join(group) if len(group) > 1 else f"{group[0]} is also the head, which is not stored"


def _output_view(data: Mapping[str, Any]) -> Group:
    report = Report.model_validate(data["report"])
    folder = Path(data["path"])
    head = facts(
        ("output", data["path"]),
        ("recipe", report.name),
        ("model", f"{report.model.name}, {report.model.parameters:,} parameters"),
        ("measured", f"{len(report.perplexity.get('base', {}))} languages" if report.perplexity else "nothing"),
    )
    parts: list[RenderableType] = [head, Text("")]
    if report.regions:
        parts.append(grid_table(regions_table(report.regions).columns(*CROWDS)))
    if report.variants:
        parts.append(grid_table(variants_table(report, folder).columns(*GLANCE)))
    return Group(*parts, *(expectation_line(item, report) for item in report.expectations))
