"""The page as a reader has it: in a real browser, wide and on a phone, light, dark, on paper and without script."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from reports import make_region, make_report

from surgeon.region.region import Region
from surgeon.report.html import write_page
from surgeon.report.language_figures import language_groups
from surgeon.report.regions import overlap_reports, region_report

pytestmark = pytest.mark.slow
Open = Callable[..., Any]
WIDE = [(1280, "light"), (1280, "dark")]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    made, core = make_report(), make_region()
    generator = np.random.default_rng(1)
    drawn = Region.from_masks({name: generator.random(core.shapes[name]) < 0.1 for name in core if "norm" not in name})
    report = made.model_copy(update={
        "regions": {**made.regions, "random": region_report(drawn, {}, "random")},
        "overlaps": overlap_reports({"core": core, "random": drawn}),
    })  # fmt: skip
    folder = tmp_path_factory.mktemp("page")
    write_page(report, folder)
    return (folder / "report.html").as_uri()


def open_in(browser: Any, address: str, complaints: list[str], width: int, live: bool, **settings: Any) -> Any:
    """The page in a window of its own, its figures live."""
    context = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=live, **settings)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    page.goto(address)
    if live:
        for figure in page.locator("main > div > figure, section > figure, .pair figure").all():
            figure.evaluate("(figure) => figure.scrollIntoView()")  # a figure comes to life when it is seen
            name = figure.get_attribute("data-figure")
            if not name.startswith("scan"):
                page.wait_for_selector(f"figure[data-figure='{name}'][data-ready]")
        page.evaluate("document.querySelector('details[data-print]').open = true; scrollTo(0, 0)")
    return page


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Open]:
    """Opens the page; in the end nothing may have gone wrong or been asked of a network."""
    pages, complaints = [], []

    def open_page(width: int = 1280, live: bool = True, **settings: Any) -> Any:
        pages.append(open_in(browser, address, complaints, width, live, **settings))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def reading(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[tuple[Any, int, str]]:
    """The page as one reader has it, to be looked at and not changed; its width, and its scheme of colours."""
    (width, scheme), complaints = request.param, []
    page = open_in(browser, address, complaints, width, live=True, color_scheme=scheme)
    yield page, width, scheme
    page.context.close()
    assert complaints == []


def first_column(page: Any) -> list[str]:
    return [text.replace("• ", "") for text in page.locator("#by-language tr:visible th").all_inner_texts()]


def labels(page: Any, name: str) -> list[str]:
    """The languages of a live figure, from the top."""
    shown = page.locator(f"figure[data-figure={name}] .live svg .role-axis-label text").all()
    known = {"Arabic", "English", "French", "Korean", "Norwegian", "Chinese", "klingon"}
    found = [(text.bounding_box()["y"], text.text_content().replace("• ", "")) for text in shown]
    return [label for _, label in sorted(found) if label in known]


BY_SCRIPT = ["English", "French", "Norwegian", "Arabic", "Chinese", "Korean", "klingon"]


def test_one_switch_orders_chart_map_and_table(opened: Open) -> None:
    page, made = opened(), make_report()
    by_effect = [made.language(code).name for _, codes in language_groups(made, "effect") for code in codes]
    for order, expected in (
        ("script", BY_SCRIPT),
        ("family", ["English", "Norwegian", "Korean", "French", "Arabic", "Chinese", "klingon"]),
        ("effect", by_effect),
        ("script", BY_SCRIPT),
    ):
        page.locator(f"label[for=order-{order}]").click()
        page.wait_for_timeout(200)
        for shown in (labels(page, "perplexity"), labels(page, "ratios"), first_column(page)):
            assert shown[: len(expected)] == expected, order
            assert len(shown) == 7


def test_columns_sort_by_the_ratio(opened: Open) -> None:
    page = opened()
    head = page.locator("#by-language").locator("xpath=..").locator("thead th").nth(3)  # the variant `broken`
    for _ in range(2):
        head.locator("button").click()
        values = page.locator("#by-language tr td:nth-child(4)").evaluate_all(
            "cells => cells.map(c => +c.dataset.value)"
        )
        expected = sorted(values, reverse=head.get_attribute("aria-sort") == "descending")
        assert values == expected
    assert head.get_attribute("aria-sort") == "ascending"
    assert set(first_column(page)[-2:]) == {"Arabic", "Chinese"}  # what is broken is worst


def test_languages_and_variants_can_be_filtered(opened: Open) -> None:
    page = opened()
    page.locator("#find").fill("latin")
    page.wait_for_timeout(200)
    for shown in (labels(page, "perplexity"), labels(page, "ratios"), first_column(page)):
        assert shown == ["English", "French", "Norwegian"]
    page.locator("#find").fill("[(")  # no pattern: nothing is found, nothing breaks
    page.wait_for_timeout(200)
    assert first_column(page) == []
    assert page.locator("#none").is_visible()
    page.locator("#find").fill("")
    page.locator(".choose summary").click()
    page.locator("input[name=variant]").nth(1).check()
    page.wait_for_timeout(200)
    heads = page.locator("#by-language").locator("xpath=..").locator("thead th:visible button").all_inner_texts()
    assert heads == ["language", "base", "cut", "broken", "base, bits/byte", "script", "family"]
    assert len(labels(page, "perplexity")) == 7


def test_pointing_says_everything(opened: Open) -> None:
    page = opened()
    page.locator("figure[data-figure=perplexity] .live svg .mark-symbol.role-mark path").first.hover()
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    for word in (
        "language",
        "variant",
        "perplexity, base",
        "of the base's perplexity",
        "script",
        "family",
        "scored on",
    ):
        assert word in tip.inner_text()
    scan = page.locator("figure[data-figure=scan] image").first
    scan.scroll_into_view_if_needed()
    box = scan.bounding_box()
    # Of 16 dimensions the fourth, near the foot but for the norms: mlp.down, whose row 3 is wholly selected.
    page.mouse.move(box["x"] + box["width"] * 3.5 / 16, box["y"] + box["height"] * 5.5 / 9)
    page.locator("#tip:visible").wait_for()
    assert page.locator("#tip").inner_text() == "core: layer 2, mlp.down, dimension 3: 100 % of its weights"
    page.mouse.click(box["x"] + box["width"] * 3.5 / 16, box["y"] + box["height"] * 5.5 / 9)
    picked = page.locator("figure[data-figure=scan] .picked")
    picked.wait_for()
    assert "core, dimension 3. Largest shares of its weights: layer 0 mlp.down 100 %;" in picked.inner_text()
    assert "random" in picked.inner_text()


def test_a_figure_can_be_taken_along(opened: Open) -> None:
    page = opened()
    taken = {}
    for kind in ("csv", "svg"):
        with page.expect_download() as waiting:
            page.locator(f"figure[data-figure=perplexity] [data-take={kind}]").click()
        taken[kind] = Path(waiting.value.path()).read_text(encoding="utf-8")
    rows = list(csv.DictReader(taken["csv"].splitlines()))
    english = next(row for row in rows if (row["variant"], row["language"]) == ("cut", "English"))
    assert float(english["multiple"]) == pytest.approx(math.exp(0.2))
    assert "var(" not in taken["svg"]
    ElementTree.fromstring(taken["svg"])


@pytest.mark.parametrize("reading", [*WIDE, (390, "dark")], indirect=True, ids=str)
def test_it_fits_and_follows_the_theme(reading: tuple[Any, int, str]) -> None:
    page, width, scheme = reading
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 22, 28)"}[scheme]
    ink = page.locator("figure[data-figure=perplexity] .live .role-axis-label text").first
    assert ink.evaluate("mark => getComputedStyle(mark).fill") == {
        "light": "rgb(29, 36, 48)", "dark": "rgb(230, 234, 240)"
    }[scheme]  # fmt: skip
    drawn = page.locator("figure[data-figure=perplexity] .live svg").bounding_box()
    assert drawn["x"] + drawn["width"] <= width


@pytest.mark.parametrize("reading", WIDE, indirect=True, ids=str)
def test_everyone_can_use_it(reading: tuple[Any, int, str]) -> None:
    """The rules of axe, all parts opened."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page, _, _ = reading
    page.evaluate("document.querySelectorAll('details').forEach((item) => { item.open = true; })")
    found = axe.Axe().run(page)
    assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in found.response["violations"]] == []


def test_without_script_the_pictures_stand(opened: Open) -> None:
    page = opened(live=False)
    for figure in page.locator("main > div > figure, section > figure, .pair figure").all():
        assert figure.locator(".still svg").bounding_box()["height"] > 50
    assert page.locator(".tools").is_hidden()
    assert page.locator("#by-language tr").count() == 7


def test_on_paper_it_is_light_and_nothing_is_hidden(opened: Open) -> None:
    page = opened(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("figure[data-figure=perplexity] .still svg").is_visible()
    assert page.locator("figure[data-figure=perplexity] .live").is_hidden()
    assert page.locator("#by-language").is_visible()
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) <= 6
