"""The report's page: complete, self-contained, and honest about broken models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from reports import HOSTILE, POINTS, make_report

from surgeon.report.data import Report
from surgeon.report.figures import figures
from surgeon.report.html import page, write_page


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
            self.tables.append({"caption": "", "rows": []})
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
def text(report: Report) -> str:
    return page(report)


@pytest.fixture(scope="module")
def structure(text: str) -> Structure:
    parsed = Structure()
    parsed.feed(text)
    assert parsed.open == []
    return parsed


def test_page_loads_nothing_and_is_small(text: str, structure: Structure) -> None:
    assert "default-src 'none'" in text
    assert "unsafe-eval" not in text
    for tag, attributes in structure.elements:
        assert tag not in ("link", "img", "iframe", "object")
        assert "src" not in attributes
        for key in ("href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/png;base64,"))
    assert "@import" not in text
    assert len(text.encode()) < 3_000_000


def test_names_are_escaped(text: str) -> None:
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "test &lt;report&gt;" in text


def test_the_script_s_data_cannot_end_its_element(report: Report) -> None:
    hostile = report.model_copy(update={"regions": {"</script><script>alert(3)</script><!--": report.regions["core"]}})
    text = page(hostile)
    assert "alert(3)</script>" not in text
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    assert "</script><script>alert(3)</script><!--" in json.loads(found[1])["scans"]["scan"]


def test_what_a_model_says_cannot_break_out_of_its_place(report: Report, text: str) -> None:
    assert "alert(2)</script>" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    said = "&lt;/bdi&gt;&lt;script&gt;alert(2)&lt;/script&gt;\\x1b[2J\\u202e↵\ufffd مرحبا"
    assert text.count(f'<bdi dir="auto">{said}</bdi>') == len(report.generations)
    assert text.count("the end, says the model") == 1
    assert json.loads(report.model_dump_json())["generations"]["cut"][0]["continuation"] == HOSTILE


def test_points_of_a_sweep_stand_in_their_own_section(structure: Structure, report: Report) -> None:
    by_caption = {table["caption"]: table for table in structure.tables}
    points = next(table for caption, table in by_caption.items() if caption.startswith("Sweep swept."))
    # Kind, share, entries, perplexity, ratio, interval, variant; below the points stands the base.
    assert points["rows"] == [7] * (1 + len(POINTS) + 1)
    variants = next(table for caption, table in by_caption.items() if caption.startswith("Variants."))
    assert len(variants["rows"]) == 1 + len(report.variants) - len(POINTS) + 1


def test_tables_are_whole_and_captioned(structure: Structure) -> None:
    assert len(structure.tables) >= 6
    for table in structure.tables:
        assert table["caption"]
        assert len(set(table["rows"])) == 1, table["caption"]
    heads = [attributes for tag, attributes in structure.elements if tag == "th"]
    assert all(head.get("scope") in ("col", "row") for head in heads)


def test_every_figure_stands_without_script_and_every_id_is_its_own(structure: Structure, report: Report) -> None:
    ids = [attributes["id"] for _, attributes in structure.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    drawings = [attributes for tag, attributes in structure.elements if tag == "svg"]
    assert [drawing["role"] for drawing in drawings] == ["img"] * len(figures(report))
    assert {drawing["aria-label"] for drawing in drawings} == {figure.title for figure in figures(report)}
    anchors = [attributes["href"] for tag, attributes in structure.elements if tag == "a"]
    assert all((anchor or "").removeprefix("#") in ids for anchor in anchors)


def test_captions_say_what_is_seen(text: str, report: Report) -> None:
    for figure in figures(report):
        assert len(figure.caption) > 100, figure.name
        assert (
            figure.caption.replace(" %", "\u00a0%").replace("'", "&#39;").replace("<", "&lt;").replace(">", "&gt;")
            in text
        )


def test_all_measured_figures_are_there(text: str, report: Report) -> None:
    bare = re.sub(r"<[^>]+>", " ", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
    for name in ("• Arabic", "Norwegian", "klingon", "nan", "inf", "FAILED", "held", "geometric mean"):
        assert name in bare, name
    for row in report.perplexity.values():
        for item in row.values():
            if item.perplexity < 1000:
                assert f"{item.perplexity:.3g}" in bare or f"{item.perplexity:.2f}" in bare


def test_a_report_with_nothing_measured_still_has_a_page(report: Report) -> None:
    bare = report.model_copy(update={
        "perplexity": {}, "summary": {}, "expectations": [], "regions": {}, "scores": [], "sweeps": {},
        "generations": {},
    })  # fmt: skip
    text = page(bare)
    assert 'id="languages"' not in text
    assert figures(bare) == []
    assert "vegaEmbed=" not in text.replace(" ", "")  # what would draw is left out too


def test_page_is_the_same_from_the_saved_report(report: Report, text: str, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    assert page(Report.load(tmp_path / "report.json")) == text


def test_a_report_of_before_is_still_shown(report: Report, tmp_path: Path) -> None:
    data = json.loads(report.model_dump_json())
    del data["overlaps"]
    del data["regions"]["core"]["scan"]
    (tmp_path / "report.json").write_text(json.dumps(data))
    assert 'data-figure="scan"' not in page(Report.load(tmp_path / "report.json"))


def test_page_and_pictures_are_written(report: Report, tmp_path: Path) -> None:
    write_page(report, tmp_path)
    pictures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"perplexity.png", "perplexity-dark.png", "perplexity.svg", "scan.png", "scan-dark.png"} <= pictures
    assert (tmp_path / "report.html").stat().st_size > 900_000  # what makes it live is inside


def test_nothing_is_imported_for_drawing_before_a_page_is_drawn() -> None:
    code = "import sys, surgeon.api, surgeon.cli; print({'altair', 'vl_convert', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
