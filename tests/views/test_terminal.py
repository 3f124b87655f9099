"""What the terminal shows: within 80 columns, wider where there is room, plain into a pipe."""

from __future__ import annotations

import json
import math
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from reports import POINTS, make_region, make_report
from rich.cells import cell_len
from rich.console import Console, RenderableType

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.diff.comparison import Comparison
from surgeon.diff.diff import compare_checkpoints
from surgeon.errors import InputError
from surgeon.freeze.bundle import write_bundle
from surgeon.region.overlap import overlap
from surgeon.region.region import Region
from surgeon.report.data import Report
from surgeon.report.entries import OverSeeds, SweepReport
from surgeon.report.grid import Grid, Row, as_cells
from surgeon.report.words import number
from surgeon.views.differences import comparison_view
from surgeon.views.inspection import inspection_view, look_at
from surgeon.views.terminal import grid_table, render, report_view, sparkline


def shown(view: RenderableType, width: int, terminal: bool = True, **options: object) -> list[str]:
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, legacy_windows=False, **options)  # type: ignore[arg-type]
    render(console, view)
    return out.getvalue().splitlines()


def with_variants(count: int) -> Report:
    report = make_report()
    names = ["base", *(f"variant-number-{i}" for i in range(count))]
    perplexity = {name: report.perplexity["base" if name == "base" else "cut"] for name in names}
    summary = {name: report.summary["base" if name == "base" else "cut"] for name in names}
    variants = {name: report.variants["cut"] for name in names[1:]}
    return report.model_copy(
        update={
            "perplexity": perplexity, "summary": summary, "variants": variants, "sweeps": {}, "generations": {},
        }
    )  # fmt: skip


@pytest.mark.parametrize("variants", [1, 3, 5, 12])
def test_report_fits_eighty_columns(variants: int) -> None:
    lines = shown(report_view(with_variants(variants), "out"), 80, color_system=None)
    assert max(len(line.rstrip()) for line in lines) <= 80
    text = "\n".join(lines)
    assert "variant-number-0 " in text  # no name is folded or cut
    assert all(f"variant-number-{i}" in text for i in range(variants))
    assert "Norwegian" in text


def test_sweeps_and_continuations_fit_eighty_columns() -> None:
    lines = shown(report_view(make_report(), "out"), 80, terminal=False)
    brief = "\n".join(lines)
    assert brief.count("Sweep swept") == 1
    assert "swept-core" not in brief  # the table shows the axes, and not each point per language
    lines = shown(report_view(make_report(), "out"), 80, color_system=None)
    assert max(cell_len(line.rstrip()) for line in lines) <= 80
    whole = "\n".join(shown(report_view(make_report(), "out", details=True), 80, color_system=None))
    assert whole.count("swept, ") >= len(POINTS)  # by their values, not by the names of their folders
    assert "\u202e" not in brief + whole
    assert "\x1b" not in brief
    assert "the end, says the model" in brief


def test_a_wide_screen_shows_more() -> None:
    report = with_variants(5)
    narrow, wide = (shown(report_view(report, "out"), width, color_system=None) for width in (80, 200))
    french = [" ".join(line for line in lines if line.lstrip().startswith("French")) for lines in (narrow, wide)]
    assert french[0].count("x1.22") == french[1].count("x1.22") == 5
    value = f" {number(report.perplexity['variant-number-0']['fr'].perplexity)} "
    assert french[0].count(value) == 0
    assert french[1].count(value) == 5


def test_colour_on_a_terminal_only_and_never_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    view = report_view(make_report(), "out")
    coloured = "\n".join(shown(view, 100, color_system="truecolor"))
    assert "\x1b[32m" in coloured
    assert "\x1b" not in "\n".join(shown(view, 100, terminal=False))
    monkeypatch.setenv("NO_COLOR", "1")
    quiet = "\n".join(shown(view, 100))
    assert "\x1b[32m" not in quiet
    assert "\x1b[31m" not in quiet


def test_a_pipe_gets_no_padding() -> None:
    lines = shown(report_view(make_report(), "out"), 80, terminal=False)
    assert all(line == line.rstrip() for line in lines)


def test_diff_and_overlap_fit_eighty_columns(llama: Path) -> None:
    checkpoint = Checkpoint.open(llama)
    name = "model.layers.1.mlp.down_proj.weight"
    shape = checkpoint.tensors[name].shape
    one = Region.from_masks({name: np.ones(shape, np.bool_)})
    two = Region.from_masks({name: np.eye(*shape, dtype=np.bool_)})
    found = compare_checkpoints(checkpoint, checkpoint, {"one": one, "two": two})
    both = overlap(one, two)
    for details in (False, True):
        for checkpoints in (found, None):
            view = comparison_view(Comparison(("one", "two"), checkpoints, both), details)
            assert max(len(line.rstrip()) for line in shown(view, 80, color_system=None)) <= 80


def test_inspect_a_region(tmp_path: Path) -> None:
    path = tmp_path / "core.region.safetensors"
    region = make_region()
    region.metadata = {"model": "m", "select": {"top": 0.05}, "source_sha256": {"a": "b"}}
    region.save(path)
    found = look_at(str(path))
    assert (found["kind"], found["entries"], found["numel"]) == ("region", region.entries, region.numel)
    assert found["dimensions"][0]["index"] == 3  # every matrix that writes the stream has row 3 full
    assert [layer["layer"] for layer in found["layers"]] == [0, 1, 2]
    assert sum(role["entries"] for role in found["roles"].values()) == region.entries
    assert found["provenance"] == {"model": "m", "select": {"top": 0.05}}
    text = "\n".join(shown(inspection_view(found), 80, color_system=None))
    assert "top 0.05" in text
    assert "3 (" in text
    json.dumps(found)


def test_inspect_a_checkpoint(llama: Path) -> None:
    found = look_at(str(llama))
    assert (found["kind"], found["layers"], found["hidden_size"]) == ("checkpoint", 2, 32)
    checkpoint = Checkpoint.open(llama)
    inside = [info.numel for name, info in checkpoint.tensors.items() if ".layers." in name]
    assert found["reach"] == {"tensors": len(inside), "numel": sum(inside)}
    assert max(len(line.rstrip()) for line in shown(inspection_view(found), 80, color_system=None)) <= 80


def test_inspect_an_output_and_a_variant(tmp_path: Path, llama: Path) -> None:
    make_report().save(tmp_path / "report.json")
    found = look_at(str(tmp_path))
    assert (found["kind"], found["passed"]) == ("output", False)
    json.dumps(found, allow_nan=False)
    assert "FAILED" in "\n".join(shown(inspection_view(found), 80))

    variant = tmp_path / "variant"
    variant.mkdir()
    for file in llama.iterdir():
        (variant / file.name).write_bytes(file.read_bytes())
    marker = {
        "variant": "cut", "operations": [{"zero": "core"}],
        "model": {"source": "m", "revision": None, "content_sha256": "0" * 64}, "regions": {}, "recipe": {"name": "r"},
        "tensors": 3, "entries": 70,
    }  # fmt: skip
    (variant / "surgeon.json").write_text(json.dumps(marker))
    found = look_at(str(variant))
    assert (found["kind"], found["variant"], found["edited"]) == ("variant", "cut", {"tensors": 3, "entries": 70})
    assert "zero core" in "\n".join(shown(inspection_view(found), 80))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(InputError, match=r"report\.json"):
        look_at(str(tmp_path))


def test_sparkline_runs_from_low_to_high() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "\u2581\u2585\u2588"
    assert len(set(sparkline([0.2, 0.2, 0.2]))) == 1
    assert sparkline([0.0, 0.0, 0.5, 0.5, 1.0], width=3) == "\u2581\u2585\u2588"


def test_inspect_a_freeze_bundle(tmp_path: Path, llama: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    name = "model.layers.1.mlp.down_proj.weight"
    mask = np.zeros(Checkpoint.open(llama).tensors[name].shape, np.bool_)
    mask[3] = True
    bundle = write_bundle(folder, Region.from_masks({name: mask}), base={"name": "some/model"})
    found = look_at(str(bundle))
    width = mask.shape[1]
    assert (found["kind"], found["entries"]) == ("bundle", width)
    assert found["frozen"]["bytes_kept"] == 4 * width
    assert look_at(str(folder))["frozen"] == found["frozen"]
    assert "some/model" in "\n".join(shown(inspection_view(found), 100))
    narrow = look_at(
        str(write_bundle(folder, Region.from_masks({name: mask}), base={"name": "some/model"}, train_only=True))
    )
    all_others = sum(math.prod(tensor.shape) for tensor in Checkpoint.open(llama).tensors.values()) - width
    said = " ".join(" ".join(shown(inspection_view(narrow), 200)).split())
    assert f"all but {width} entries, which alone train: {all_others:,} entries" in said


def test_variants_are_shown_with_what_was_edited_and_how_sure_the_ratio_is() -> None:
    report = make_report()
    cut = report.variants["cut"].model_copy(update={"entries": 21600, "changed": 2378, "norm_removed": 12.345})
    summary = report.summary["cut"].model_copy(update={"low": 1.1, "high": 1.4})
    report = report.model_copy(
        update={"variants": {**report.variants, "cut": cut}, "summary": {**report.summary, "cut": summary}}
    )
    lines = shown(report_view(report, "out"), 100, color_system=None)
    (line,) = (line for line in lines if "21,600" in line)
    assert line.split() == ["cut", "21,600", "2,378", "12.35", "1.22", "1.10", "to", "1.40"]
    assert not any(point in line for point in POINTS for line in lines)


def test_a_control_drawn_with_several_seeds_is_one_line_with_mean_and_range() -> None:
    report = make_report()
    points = list(POINTS)[:2]
    group = OverSeeds(values=[], points=points, mean=1.02, low=1.01, high=1.04)
    sweep = SweepReport(
        axes={"seed": [0, 1]}, points={point: [i] for i, point in enumerate(points)}, over_seeds=[group]
    )
    edits = [{"entries": 50, "changed": 40 + i, "norm_removed": 2.0 + i} for i in range(2)]
    drawn = {point: report.variants[point].model_copy(update=edit) for point, edit in zip(points, edits, strict=True)}
    report = report.model_copy(update={"sweeps": {"drawn": sweep}, "variants": {**report.variants, **drawn}})
    lines = shown(report_view(report, "out"), 100, color_system=None)
    (line,) = (line for line in lines if "2 seeds" in line and "range" in line)
    assert line.split() == [
        "drawn,",
        "2",
        "seeds",
        "50",
        "40",
        "to",
        "41",
        "2.5",
        "1.02",
        "1.01",
        "to",
        "1.04",
        "(range)",
    ]


def test_columns_of_one_name_keep_their_places() -> None:
    """An axis of a sweep may be called as a column of every table is."""
    grid = Grid("Sweep", ("entries", "times", "entries"), [Row(as_cells("few", "2.0", "1,000"))])
    head = next(line for line in shown(grid_table(grid), 80, terminal=False) if "times" in line)
    assert head.split() == ["entries", "times", "entries"]
