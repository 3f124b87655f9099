"""Figures: what is drawn is what the report holds, in colours and shapes that can be told apart and read."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import vl_convert
from reports import LANGUAGES, POINTS, make_region, make_report

from surgeon.model.results import Quantity
from surgeon.region.region import Region
from surgeon.report.charts import COOL, CROWDING, HEAT, JACCARD, LOST, RATIOS, STRONG
from surgeon.report.data import Report
from surgeon.report.drawing import PALETTE, Figure, repacked, svg, themed, write_pictures
from surgeon.report.figures import figures, variant_figures
from surgeon.report.language_figures import language_groups, series
from surgeon.report.region_figures import EXPONENT, brightest, picture, pooled
from surgeon.report.regions import OverlapReport, overlap_reports, region_report
from surgeon.report.story import tell
from surgeon.report.words import number

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report() -> Report:
    """A report with a control region beside the core, and their overlap."""
    made, core = make_report(), make_region()
    generator = np.random.default_rng(1)
    drawn = Region.from_masks({name: generator.random(core.shapes[name]) < 0.1 for name in core if "norm" not in name})
    regions = {"core": core, "random": drawn}
    return made.model_copy(update={
        "regions": {**made.regions, "random": region_report(drawn, {}, "random")}, "overlaps": overlap_reports(regions),
    })  # fmt: skip


@pytest.fixture(scope="module")
def drawn(report: Report) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures(report)}


def data_of(figure: Figure) -> list[dict[str, Any]]:
    """All rows of a figure's inline data."""
    found: list[dict[str, Any]] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("data"), dict):
                found.extend(node["data"].get("values", []))
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(figure.spec)
    for values in figure.spec.get("datasets", {}).values():
        found.extend(values)
    return found


def test_all_figures_are_there_and_none_that_is_constant(drawn: dict[str, Figure], report: Report) -> None:
    assert list(drawn) == [
        "perplexity",
        "ratios",
        "sweep-swept",
        "scan",
        "scan-random",
        "measured-choice",
        "overlaps",
        "crowding",
    ]
    alone = report.model_copy(update={"overlaps": [OverlapReport(left="a", right="b", jaccard=0.003, by_chance=0.004)]})
    assert "overlaps" not in {figure.name for figure in figures(alone)}


def test_specifications_are_valid(report: Report, drawn: dict[str, Figure]) -> None:
    """They are built without checking, for speed; here the schema of Vega-Lite is asked."""
    import altair

    for figure in drawn.values():
        altair.Chart.from_dict(figure.spec, validate=True)


def test_each_language_stands_at_its_ratio(report: Report, drawn: dict[str, Figure]) -> None:
    rows = {(row["variant"], row["label"]): row for row in data_of(drawn["perplexity"]) if "label" in row}
    assert rows["cut", "English"]["ratio"] == pytest.approx(math.exp(0.2))
    assert rows["cut", "• Arabic"]["scored"] == "yes"
    assert rows["broken", "• Arabic"]["broken"] == "nan"
    assert rows["broken", "Chinese"]["broken"] == "inf"
    finite = [row["ratio"] for row in rows.values() if not row["broken"]]
    assert rows["broken", "Chinese"]["ratio"] > max(finite)


def test_a_position_follows_the_logarithm() -> None:
    """Read back from the drawing: equal factors are equal distances."""
    made = make_report()
    values = {"en": 2.0, "fr": 4.0, "ko": 8.0}
    base = {code: made.perplexity["base"][code] for code in values}
    cut = {
        code: item.model_copy(update={"log_perplexity": item.log_perplexity + math.log(values[code])})
        for code, item in base.items()
    }
    small = made.only([]).model_copy(update={
        "perplexity": {"base": base, "cut": cut}, "summary": {"base": made.summary["base"], "cut": made.summary["cut"]},
        "sweeps": {}, "variants": {"cut": made.variants["cut"]},
    })  # fmt: skip
    root = ElementTree.fromstring(svg(figures(small)[0]))
    marks = [element for element in root.iter(f"{SVG}path") if element.get("fill") == "var(--series-0)"]
    places = sorted(
        {float(re.findall(r"[\d.]+", mark.get("transform", ""))[0]) for mark in marks if mark.get("transform")}
    )
    places = places[-3:]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.01)
    assert places[1] - places[0] > 50


def test_an_interval_is_drawn_where_there_is_one(report: Report) -> None:
    assert "interval" not in json.dumps(figures(report)[0].spec)
    english = report.perplexity["cut"]["en"].model_copy(update={"low": 1.1, "high": 1.4})
    cut = {**report.perplexity["cut"], "en": english}
    figure = figures(report.model_copy(update={"perplexity": {**report.perplexity, "cut": cut}}))[0]
    with_interval = [row for row in data_of(figure) if "low" in row]
    assert [(row["language"], row["low"], row["high"]) for row in with_interval] == [("English", 1.1, 1.4)]
    before, after = (svg(one).count('stroke-width="5"') for one in (figures(report)[0], figure))
    assert (before, after) == (0, 1)


def test_any_measurement_is_drawn_by_its_name_with_its_interval_and_chance(report: Report) -> None:
    """The interval of a change stands at the base's value; the base has its own; what is not a number says so."""
    figure = next(figure for figure in figures(report) if figure.name == "measured-choice")
    rows = {(row["variant"], row["language"]): row for row in data_of(figure) if "language" in row}
    assert len(rows) == 2 * len(LANGUAGES) + 1
    base, cut, broken = (rows[name, "Arabic"] for name in ("base", "cut", "broken"))
    assert (base["value"], base["low"], base["high"]) == (0.75, 0.5, 0.9)
    assert (cut["value"], cut["low"], cut["high"]) == (0.35, 0.25, 0.5)
    assert (cut["change"], cut["interval"]) == ("−40.0 points", "\u221250.0 to \u221225.0 points")
    assert (broken["broken"], broken["value"]) == ("nan", 0.35)
    assert figure.title == "Own end chosen, by language"
    assert "Less is worse. The dashed line is chance, 25.0 %." in figure.caption
    root = ElementTree.fromstring(svg(figure))
    dots = [path for path in root.iter(f"{SVG}path") if path.get("fill") in ("var(--ink)", "var(--series-0)")]
    assert len([dot for dot in dots if dot.get("transform")]) >= 2 * len(LANGUAGES)


def test_draws_of_a_control_are_one_in_every_measurement(report: Report) -> None:
    item = report.measurements["choice"]
    mean = item.averaged(["base", "cut"], "fr", "accuracy")
    assert mean is not None
    assert (mean.value, mean.low, mean.high) == (pytest.approx(0.55), -0.4, -0.4)
    assert item.averaged(["cut"], "fr", "accuracy") == item.found["cut"]["fr"]["accuracy"]
    assert item.averaged(["broken"], "fr", "accuracy") is None
    times = Quantity(name="accuracy", title="perplexity", unit="", worse="more", compare="ratio")
    mean = item.model_copy(update={"quantities": [times]}).averaged(["base", "cut"], "fr", "accuracy")
    assert mean is not None
    assert mean.value == pytest.approx(math.sqrt(0.75 * 0.35))


def test_languages_are_grouped_without_loss(report: Report) -> None:
    for order in ("script", "family", "effect"):
        grouped = [code for _, codes in language_groups(report, order) for code in codes]
        assert sorted(grouped) == sorted(LANGUAGES)
    assert dict(language_groups(report, "script"))["Latin"] == ["en", "fr", "no"]
    broken = report.only(["broken"])  # by the effect of the cut, and what broke comes first
    assert set(language_groups(broken, "effect")[0][1][:2]) == {"ar", "zh"}


@pytest.mark.parametrize(
    ("value", "label"),
    [(1.0, "×0.99 to 1.01"), (0.9901, "×0.99 to 1.01"), (1.0099, "×0.99 to 1.01"), (1.0101, "×1.01 to 1.05"),
     (0.98, "×0.8 to 0.99"), (0.1, "under ×0.5"), (21.0, "×10 to 100"), (math.inf, "×1000 and more"),
     (math.nan, "×1000 and more")],
)  # fmt: skip
def test_what_changed_by_less_than_a_hundredth_is_grey(value: float, label: str) -> None:
    assert RATIOS.of(value)["step"] == label
    grey = RATIOS.colours[RATIOS.labels.index("×0.99 to 1.01")]
    assert (RATIOS.colours[RATIOS.labels.index(label)] == grey) == (abs(value - 1) < 0.01)


def test_what_is_no_better_than_guessing_is_drawn_closer_together_and_said() -> None:
    """A place beyond guessing keeps its order, and short of it its logarithm."""
    made = make_report()
    known = made.model_copy(update={"model": made.model.model_copy(update={"vocabulary": 40})})
    guess = math.log(40) - known.perplexity["base"]["en"].log_perplexity
    figure = next(figure for figure in figures(known) if figure.name == "perplexity")
    rows = [row for row in data_of(figure) if row.get("language") == "English"]
    for row in rows:
        log = known.perplexity[row["variant"]]["en"].log_perplexity - known.perplexity["base"]["en"].log_perplexity
        beyond = log >= guess
        assert (row["step"] == LOST) == beyond
        assert row["times"].endswith(", no better than guessing") == beyond
        assert math.log(row["ratio"]) == pytest.approx(guess + 0.1 * (log - guess) if beyond else log)
    assert "no better than a uniform guess over 40 tokens" in figure.caption


def test_overlaps_are_those_of_the_masks(report: Report, drawn: dict[str, Figure]) -> None:
    row = next(row for row in data_of(drawn["overlaps"]) if row.get("left") == "core")
    assert float(row["exactly"]) == pytest.approx(report.overlaps[0].jaccard, abs=1e-4)
    assert JACCARD.labels[0] == "by chance"
    assert CROWDING.of(2.9)["step"] == "under 3"


def chunks_of(content: bytes) -> dict[bytes, bytes]:
    """Take a PNG apart, by its definition."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    chunks: dict[bytes, bytes] = {}
    while at < len(content):
        (length,), kind = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        body = content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        chunks[kind], at = chunks.get(kind, b"") + body, at + 12 + length
    return chunks


def pixels(url: str) -> np.ndarray:
    """Decode a PNG of a byte per pixel."""
    chunks = chunks_of(base64.b64decode(url.partition(",")[2]))
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    return palette[rows[:, 1:]]


def test_a_picture_packed_tighter_is_the_same() -> None:
    disc = '<circle cx="90" cy="80" r="70" fill="#c2410c"/>'
    before = vl_convert.svg_to_png(f'<svg xmlns="http://www.w3.org/2000/svg" width="300" height="200">{disc}</svg>')
    after = repacked(before)
    assert len(after) < 0.7 * len(before)
    one, other = chunks_of(before), chunks_of(after)
    assert zlib.decompress(one.pop(b"IDAT")) == zlib.decompress(other.pop(b"IDAT"))
    assert one == other


def test_the_scan_s_light_is_the_share_of_hits(report: Report, drawn: dict[str, Figure]) -> None:
    scan = report.regions["core"].scan
    assert scan is not None
    full = brightest(scan)
    light = pixels(picture(scan.shares(), full)).astype(int).sum(axis=2)
    assert light.shape == (len(scan.rows), 16)
    down = [i for i, (_, role) in enumerate(scan.rows) if role == "mlp.down"]
    assert all(light[i].argmax() == 3 for i in down)  # row 3 is wholly selected there
    order = np.argsort(scan.shares().ravel(), kind="stable")
    assert (np.diff(light.ravel()[order]) >= 0).all()
    assert EXPONENT > 0
    (url,) = [row["url"] for row in data_of(drawn["scan"]) if "url" in row]
    assert (pixels(url) == pixels(picture(scan.shares(), full))).all()
    profiles = [row for row in data_of(drawn["scan"]) if "mean" in row]  # the control is a profile below
    assert {row["region"] for row in profiles} == {"core", "random"}
    means = [row["mean"] for row in profiles if row["region"] == "core"]
    np.testing.assert_allclose(means, scan.shares().mean(axis=0), atol=1e-5)


def test_no_dimension_is_lost_on_its_way_to_the_pixels() -> None:
    """One bright dimension stays as bright as it is, wherever it lies and however few pixels there are."""
    for columns, most in ((576, 350), (576, 100), (351, 350), (350, 350), (16, 350)):
        shares = np.diag(np.linspace(0.5, 1, columns))
        seen = pooled(shares, most)
        assert seen.shape == (columns, min(columns, most))
        np.testing.assert_array_equal(seen.max(axis=1), shares.max(axis=1))


def test_the_arrows_and_the_caption_name_the_same_dimensions(drawn: dict[str, Figure], report: Report) -> None:
    marked = [row["said"] for row in data_of(drawn["scan"]) if "said" in row and "left" not in row]
    assert marked[0] == str(report.regions["core"].dimensions[0].index)
    assert f"that stand apart: {', '.join(marked)}." in drawn["scan"].caption


def test_a_sweep_s_points_stand_at_their_logarithms(report: Report, drawn: dict[str, Figure]) -> None:
    rows = {row["point"]: row for row in data_of(drawn["sweep-swept"]) if "point" in row}
    assert set(rows) == set(POINTS)
    base = report.summary["base"].log_geometric_mean_perplexity
    for point, row in rows.items():
        log = report.summary[point].log_geometric_mean_perplexity - base
        if not row["broken"]:
            assert math.log(row["ratio"]) == pytest.approx(log)
        assert row["x"] == POINTS[point][1]
    assert rows["swept-core-0.1"]["broken"] == "×nan"
    assert '"type": "log"' in json.dumps(drawn["sweep-swept"].spec["layer"][1]["encoding"]["x"])


def test_a_sweep_over_two_axes_of_numbers_is_a_map(report: Report) -> None:
    """Each cell holds the value of its own point."""
    numbers = {name: [{"core": 1, "<b>": 2}[kind], share] for name, (kind, share) in POINTS.items()}
    swept = report.model_copy(update={"sweeps": {"swept": report.sweeps["swept"].model_copy(
        update={"axes": {"rows": [1, 2], "share": [0.001, 0.01, 0.1]}, "points": numbers}
    )}})  # fmt: skip
    figure = next(figure for figure in figures(swept) if figure.name == "sweep-swept")
    assert "by rows and share" in figure.title
    cells = {(row["down"], row["across"]): row for row in data_of(figure)}
    assert len(cells) == 6
    for point, (rows, share) in numbers.items():
        assert cells[str(rows), f"{share:g}"]["times"] == f"×{number(report.summary[point].ratio_to_base)}"
    ElementTree.fromstring(svg(figure))


def test_a_sweep_without_numbers_is_drawn_as_bars(report: Report) -> None:
    points = {name: [[kind], "x"] for name, (kind, share) in POINTS.items() if share == 0.01}
    axes = {"columns": [["core"], ["<b>"]], "other": ["x"]}
    swept = report.model_copy(update={"sweeps": {"swept": report.sweeps["swept"].model_copy(
        update={"axes": axes, "points": points}
    )}})  # fmt: skip
    figure = next(figure for figure in figures(swept) if figure.name == "sweep-swept")
    root = ElementTree.fromstring(svg(figure))
    bars = [p.get("d", "") for p in root.iter(f"{SVG}path") if "series" in p.get("fill", "") and "h" in p.get("d", "")]
    lengths = [float(re.findall(r"h(-?[\d.]+)", bar)[0]) for bar in bars]
    base = report.summary["base"].log_geometric_mean_perplexity
    logs = [report.summary[name].log_geometric_mean_perplexity - base for name in points]
    assert lengths[0] / lengths[1] == pytest.approx(logs[0] / logs[1], rel=0.01)


def test_a_picture_is_drawn_again_only_where_it_changed(
    drawn: dict[str, Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept is what would be drawn; of drawings the latest are kept, and what makes a page live always is."""
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path))
    draw, asked = vl_convert.vegalite_to_svg, []
    monkeypatch.setattr(vl_convert, "vegalite_to_svg", lambda spec: asked.append(spec) or draw(spec))
    first = svg(drawn["overlaps"])
    (tmp_path / "page" / "kept.js").write_text("")
    assert svg(drawn["overlaps"]) == first
    assert len(asked) == 1
    wider = replace(drawn["overlaps"], spec={**drawn["overlaps"].spec, "width": {"step": 60}})
    assert svg(wider) != first
    assert len(asked) == 2
    monkeypatch.setattr("surgeon.report.drawing._MOST_KEPT", 2)
    svg(drawn["crowding"])
    assert sorted(path.suffix for path in (tmp_path / "page").iterdir()) == [".js", ".svg", ".svg"]
    assert (svg(wider), len(asked)) == (svg(wider), 3)  # the oldest went
    assert (svg(drawn["overlaps"]), len(asked)) == (first, 4)
    for path in (tmp_path / "page").glob("*.svg"):
        path.write_bytes(path.read_bytes()[:-3])
    assert (svg(drawn["overlaps"]), len(asked)) == (first, 5)  # what is damaged is not used


def test_a_picture_does_not_depend_on_those_before_it(
    drawn: dict[str, Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path / "one"))
    first = svg(drawn["scan"])
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path / "two"))
    assert svg(drawn["scan"]) == first
    assert "url(#scan-0)" in first


def test_files_stand_alone_in_light_and_dark(drawn: dict[str, Figure], tmp_path: Path) -> None:
    for figure in drawn.values():
        files = {path.name: path for path in write_pictures(figure, svg(figure), tmp_path)}
        endings = ("svg", "png") if figure.key else ("svg",)
        assert set(files) == {f"{figure.name}{suffix}.{end}" for suffix in ("", "-dark") for end in endings}
        for suffix, dark in (("", False), ("-dark", True)):
            text = files[f"{figure.name}{suffix}.svg"].read_text(encoding="utf-8")
            assert "var(" not in text
            assert f'fill="{PALETTE["ground"][dark]}"' in text
            ElementTree.fromstring(text)
    assert themed("<svg fill='var(--ink)'>", True) != themed("<svg fill='var(--ink)'>", False)


def test_a_hostile_name_stays_text(report: Report, drawn: dict[str, Figure]) -> None:
    story = tell(report)
    assert "<script>alert(1)</script>" in json.dumps(drawn["ratios"].spec)
    assert "<script" not in svg(drawn["ratios"])
    assert story.cut == "cut"


def test_a_card_s_figures_are_of_its_variant(report: Report) -> None:
    made = variant_figures(report, "broken")
    assert [figure.name for figure in made] == ["perplexity", "scan"]
    assert all(figure.key for figure in made)
    shown = next(p["value"] for p in json.loads(json.dumps(made[0].spec))["params"] if p["name"] == "shown")
    assert shown[0] == "broken"


def test_twenty_variants_look_different() -> None:
    names = [f"v{i}" for i in range(20)]
    story = tell(make_report())
    looks = series(names, story)
    assert len(set(looks)) == 20
    assert [colour for colour, _ in looks].count(looks[0][0]) == 1


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read(dark: bool) -> None:
    """Contrast of text and marks on the ground is at least 4.5, WCAG's level AA; so is text on fields of colour."""
    colours = {name: pair[dark] for name, pair in PALETTE.items()}
    fields = {*HEAT, *COOL, "none"}
    for name, colour in colours.items():
        if name in fields:
            ink = colours["ground" if name in STRONG else "ink"]
            assert contrast(colour, ink) >= 4.5, name
        elif name not in ("ground", "raised", "line"):
            assert contrast(colour, colours["ground"]) >= 4.5, name
    for name in ("ink", "quiet"):
        assert contrast(colours[name], colours["raised"]) >= 4.5, name


def contrast(one: str, two: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)
