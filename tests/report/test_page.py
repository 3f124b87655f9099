"""The report's page: complete, self-contained, honest about broken models, and alive in a real browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import font_lato
import numpy as np
import pytest
from reports import HOSTILE, LANGUAGES, POINTS, make_report
from resvg_py import svg_to_bytes

from surgeon.report.data import Report
from surgeon.report.figures import figures, language_groups
from surgeon.report.html import page, write_page
from surgeon.report.pictures import SVG_ONLY, ZOOM, write_figures
from surgeon.report.svg import STYLE, marker


class Structure(HTMLParser):
    """Collects elements, checks that they nest, and gathers each table's cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[dict[str, Any]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append({"caption": "", "heads": 0, "rows": []})
        if tag == "tr":
            self.tables[-1]["rows"].append(0)
        if tag in ("th", "td"):
            assert self.open[-1] == "tr"
            self.tables[-1]["rows"][-1] += 1
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "caption":
            self.tables[-1]["caption"] += data


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report()


@pytest.fixture(scope="module")
def structure(report: Report) -> Structure:
    parsed = Structure()
    parsed.feed(page(report))
    assert parsed.open == []
    return parsed


def test_page_loads_nothing(report: Report, structure: Structure) -> None:
    text = page(report)
    assert "default-src 'none'" in text
    for tag, attributes in structure.elements:
        assert tag not in ("link", "img", "iframe", "object")
        assert "src" not in attributes
        href = attributes.get("href") or "#"
        assert href.startswith("#")
    assert "@import" not in text
    assert "url(" not in text


def test_names_are_escaped(report: Report) -> None:
    text = page(report)
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "test &lt;report&gt;" in text


def test_what_a_model_says_cannot_break_out_of_its_place(report: Report) -> None:
    text = page(report)
    assert "alert(2)</script>" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    said = "&lt;/bdi&gt;&lt;script&gt;alert(2)&lt;/script&gt;\\x1b[2J\\u202e↵\ufffd مرحبا"
    assert text.count(f'<bdi dir="auto">{said}</bdi>') == len(report.generations)
    assert text.count("the end, says the model") == 1
    assert json.loads(report.model_dump_json())["generations"]["cut"][0]["continuation"] == HOSTILE


def test_points_of_a_sweep_stand_in_their_own_section(structure: Structure, report: Report) -> None:
    by_caption = {table["caption"]: table for table in structure.tables}
    points = next(table for caption, table in by_caption.items() if caption.startswith("Perplexity is the geometric"))
    assert points["rows"] == [5] * (1 + len(POINTS))  # variant, perplexity, kind, share, entries
    variants = next(table for caption, table in by_caption.items() if caption.startswith("Variants."))
    assert len(variants["rows"]) == 1 + len(report.variants) - len(POINTS) + 1


def test_a_sweep_s_figure_puts_each_point_at_its_logarithms(report: Report) -> None:
    """Places are read back from the drawing; a point that is broken stands above the scale, and says so."""
    drawing = next(figure for figure in figures(report) if figure.name == "sweep-swept")
    root = ElementTree.fromstring(drawing.standalone())
    places: dict[str, tuple[float, float]] = {}
    for element in root.iter("{http://www.w3.org/2000/svg}path"):
        tip = element.findtext("{http://www.w3.org/2000/svg}title") or ""
        if tip.startswith("share "):
            x, y = re.findall(r"-?[\d.]+", element.attrib["d"])[:2]
            places[tip.partition(":")[0]] = (float(x), float(y))
    squares = [
        element for element in root.iter("{http://www.w3.org/2000/svg}rect") if "series2" in element.get("class", "")
    ]
    for element in squares:
        tip = element.findtext("{http://www.w3.org/2000/svg}title") or ""
        if tip.startswith("share "):
            places[tip.partition(":")[0]] = (float(element.attrib["x"]) + 4.0, float(element.attrib["y"]) + 4.0)
    assert len(places) == len(POINTS)
    for kind in ("core", "<b>"):
        at = [places[f"share {share}, {kind}"][0] for share in ("0.001", "0.01", "0.1")]
        assert at[1] - at[0] == pytest.approx(at[2] - at[1], abs=0.2)
    heights = {name: report.summary[name].log_geometric_mean_perplexity for name in POINTS}
    one, two, three = (places[f"share {share}, <b>"][1] for share in ("0.001", "0.01", "0.1"))
    logs = [heights[f"swept-<b>-{share}"] for share in ("0.001", "0.01", "0.1")]
    assert (one - two) / (two - three) == pytest.approx((logs[1] - logs[0]) / (logs[2] - logs[1]), rel=0.05)
    assert places["share 0.1, core"][1] == min(y for _, y in places.values())
    assert "×nan" in drawing.body


def test_a_sweep_without_numbers_is_drawn_as_bars(report: Report) -> None:
    points = {name: [[kind], "x"] for name, (kind, share) in POINTS.items() if share == 0.01}
    axes = {"columns": [["core"], ["<b>"]], "other": ["x"]}
    swept = report.model_copy(update={"sweeps": {"swept": report.sweeps["swept"].model_copy(
        update={"axes": axes, "points": points}
    )}})  # fmt: skip
    drawing = next(figure for figure in figures(swept) if figure.name == "sweep-swept").body
    lengths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"[^>]*class="series1"', drawing)]
    base = report.summary["base"].log_geometric_mean_perplexity
    logs = [report.summary[name].log_geometric_mean_perplexity - base for name in points]
    assert lengths[0] / lengths[1] == pytest.approx(logs[0] / logs[1], rel=0.01)


def test_tables_are_whole_and_captioned(structure: Structure) -> None:
    assert len(structure.tables) >= 4
    for table in structure.tables:
        assert table["caption"]
        assert len(set(table["rows"])) == 1, table["caption"]
    heads = [attributes for tag, attributes in structure.elements if tag == "th"]
    assert all(head.get("scope") in ("col", "row") for head in heads)


def test_every_figure_is_described_and_every_id_is_its_own(structure: Structure) -> None:
    ids = [attributes["id"] for _, attributes in structure.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    drawings = [attributes for tag, attributes in structure.elements if tag == "svg"]
    assert len(drawings) >= 8
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert all(part in ids for part in (drawing["aria-labelledby"] or "").split())
    anchors = [attributes["href"] for tag, attributes in structure.elements if tag == "a"]
    assert all((anchor or "").removeprefix("#") in ids for anchor in anchors)


def test_all_measured_figures_are_there(report: Report) -> None:
    text = re.sub(r"<[^>]+>", " ", page(report))
    for name in ("Arabic", "Norwegian", "klingon", "nan", "inf", "FAILED", "held", "Geometric mean"):
        assert name in text, name
    for row in report.perplexity.values():
        for item in row.values():
            if item.perplexity < 1000:
                assert f"{item.perplexity:.3g}" in text or f"{item.perplexity:.2f}" in text


def test_languages_are_grouped_without_loss(report: Report) -> None:
    for order in ("script", "family", "effect"):
        grouped = [code for _, codes in language_groups(report, order) for code in codes]
        assert sorted(grouped) == sorted(LANGUAGES)
    assert dict(language_groups(report, "script"))["Latin"] == ["en", "fr", "no"]
    assert set(language_groups(report, "effect")[0][1][:2]) == {"ar", "zh"}  # what broke comes first


def test_figures_are_xml_of_their_own_and_stay_inside_their_frame(report: Report) -> None:
    for figure in figures(report):
        root = ElementTree.fromstring(figure.standalone())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        for element in root.iter():
            for key in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
                if key in element.attrib:
                    value = float(element.attrib[key])
                    assert math.isfinite(value)
                    assert -10 <= value <= max(float(root.attrib["width"]), float(root.attrib["height"]))


STRANGE = '</desc><rect width="9" height="9" fill="var(--unknown)"/>'


def test_figures_as_files_need_nothing_of_the_machine(
    report: Report, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The renderer understands all of each drawing, and a machine without fonts draws the same picture."""
    files = write_figures(report, tmp_path / "figures")
    assert {path.stem for path in files} == {figure.name for figure in figures(report)}
    fonts = [str(path) for path in Path(font_lato.__file__).parent.rglob("Lato-*.ttf")]
    for path in files:
        if path.suffix == ".svg" and not path.stem.endswith(SVG_ONLY):
            drawing = path.read_text(encoding="utf-8")
            alone = svg_to_bytes(
                svg_string=drawing, zoom=ZOOM, font_files=fonts, sans_serif_family="Lato",
                skip_system_fonts=True, log_information=True,
            )  # fmt: skip
            picture = path.with_suffix(".png").read_bytes()
            assert picture == alone
            frame = ElementTree.fromstring(drawing)
            width, height = struct.unpack(">II", picture[16:24])
            assert width == pytest.approx(ZOOM * float(frame.attrib["width"]), abs=1)
            assert height == pytest.approx(ZOOM * float(frame.attrib["height"]), abs=1)
    assert capfd.readouterr().out == ""
    svg_to_bytes(svg_string=figures(report)[0].inline().replace("</desc>", STRANGE), log_information=True)
    assert "var(--unknown)" in capfd.readouterr().out  # what the renderer does not understand, it says


def test_twenty_models_look_different() -> None:
    looks = [marker(0, 0, series, "") for series in range(20)]
    assert len(set(looks)) == 20
    colours = [re.search(r"series\d", look)[0] for look in looks]  # type: ignore[index]
    assert colours.count(colours[0]) == 1
    assert set(colours) == set(re.findall(r"series\d", STYLE.read_text()))


def test_dot_positions_follow_the_logarithm(report: Report) -> None:
    """Positions are read back from the drawing and compared with the data."""
    drawing = next(figure for figure in figures(report) if figure.name == "perplexity").body
    found = dict(re.findall(r'<circle cx="([\d.]+)"[^>]*><title>(\w+), base', drawing))
    places = {name: float(x) for x, name in found.items()}
    logs = {"English": 3.1, "French": 3.2, "Korean": 3.3, "Norwegian": 3.4}
    steps = np.diff([places[name] for name in logs])
    np.testing.assert_allclose(steps, steps[0], atol=0.11)


def test_a_report_with_nothing_measured_still_has_a_page(report: Report) -> None:
    bare = report.model_copy(update={"perplexity": {}, "summary": {}, "expectations": [], "regions": {}, "scores": []})
    text = page(bare)
    assert "Languages" not in text
    assert figures(bare) == []


def test_page_is_the_same_from_the_saved_report(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    assert page(Report.load(tmp_path / "report.json")) == page(report)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    """Contrast of text colours on the ground is at least 4.5, WCAG's level AA."""
    for path in (STYLE, STYLE.with_name("page.css")):
        light, dark = path.read_text().split("prefers-color-scheme: dark")[:2]
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light if scheme == "light" else dark))
        for name, colour in colours.items():
            if name not in ("ground", "raised", "line"):
                assert contrast(colour, colours["ground"]) >= 4.5, name


def contrast(one: str, two: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


PROBE = """
<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective));
addEventListener("load", () => {
  const table = document.querySelector("[aria-labelledby=languages] table[data-sortable]");
  const heads = table.tHead.rows[0].cells;
  const first = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const orders = [];
  heads[1].querySelector("button").click();
  orders.push(first(), heads[1].getAttribute("aria-sort"));
  heads[1].querySelector("button").click();
  orders.push(first(), heads[1].getAttribute("aria-sort"));
  document.getElementById("order-family").click();
  const shown = [...document.querySelectorAll(".orders figure")].map((figure) => figure.offsetHeight > 0);
  document.querySelectorAll("details").forEach((item) => { item.open = true; });
  parent.postMessage(JSON.stringify({
    errors, orders, shown,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    width: document.documentElement.clientWidth,
    loaded: performance.getEntriesByType("resource").length,
    ground: getComputedStyle(document.body).backgroundColor,
  }), "*");
});
</script>
"""


# A window cannot be as narrow as a phone, but a frame in it can.
FRAME = """<!doctype html><title>frame</title><body>
<script>addEventListener("message", (event) => { document.body.dataset.found = event.data; });</script>
<iframe src="probed.html" width="WIDTH" height="900" style="border: 0"></iframe></body>"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_in_a_browser(report: Report, tmp_path: Path, width: int, dark: bool) -> None:
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if browser is None:
        pytest.skip("no Chromium on this machine")
    write_page(report, tmp_path)
    path = tmp_path / "probed.html"
    path.write_text((tmp_path / "report.html").read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
    ]  # fmt: skip
    done = subprocess.run(
        [browser, *options, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=90, check=True
    )
    parsed = Structure()
    parsed.feed(done.stdout)
    found = json.loads(next(a["data-found"] or "" for tag, a in parsed.elements if tag == "body"))
    assert not found["errors"]
    assert found["loaded"] == 0
    assert found["shown"] == [False, True, False]
    by_base = ["Arabic", "English", "French", "Korean", "Norwegian", "Chinese", "klingon"]
    assert found["orders"] == [by_base[::-1], "descending", by_base, "ascending"]
    assert found["width"] == width
    assert found["overflow"] == 0
    assert found["ground"] == ("rgb(18, 22, 28)" if dark else "rgb(255, 255, 255)")
