"""A control drawn with several seeds is told by its mean, and its bounds are the range of the draws."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import pytest
from reports import make_report

from surgeon.model.results import Measure
from surgeon.recipe.sweeps import Sweep
from surgeon.report.compared import Compared, comparison_data, comparison_table
from surgeon.report.data import Report
from surgeon.report.entries import Figure, VariantReport
from surgeon.report.grid import Grid
from surgeon.report.language_figures import perplexity_figure
from surgeon.report.measured import perplexities, summarize, sweep_report
from surgeon.report.story import tell
from surgeon.report.tables import languages_table, measurement_tables, own_table, variants_table

CODES = ("ar", "en", "zh")
DRAWN = (1.02, 1.06, 1.01)
MEAN = statistics.geometric_mean(DRAWN)


def measure(log: float) -> Measure:
    """Four sentences that differ, each of 25 tokens."""
    return Measure(100 * log, 100, 400, tuple((25 * log * part, 25) for part in (0.7, 1.3, 0.9, 1.1)))


def report_of(cuts: dict[str, float], draws: Sequence[float]) -> Report:
    """Variants that multiply the perplexity of every language, and draws of a control of the region of Arabic."""
    times = cuts | {f"any-{seed}": value for seed, value in enumerate(draws)}
    logs = {"base": 3.0} | {name: 3.0 + math.log(value) for name, value in times.items()}
    measures = {name: {code: measure(log) for code in CODES} for name, log in logs.items()}
    made, summary = make_report(), summarize(measures)
    sweep = Sweep({"seed": tuple(range(len(draws)))}, {f"any-{seed}": (seed,) for seed in range(len(draws))})
    chosen = {
        f"any-{seed}": {"c": Figure(value=0.5 + seed / 10, pieces=9, low=0.1, high=0.9)} for seed in range(len(draws))
    }
    item = made.measurements["choice"].model_copy(
        update={
            "by": "task", "overall": {},
            "found": {name: {"t": {"accuracy": row["c"]}} for name, row in chosen.items()},
        }
    )  # fmt: skip
    return made.model_copy(
        update={
            "recipe": {
                "regions": {
                    "own": {"select": {"top": 0.01, "monolingual": "ar"}},
                    "any": {"control": {"of": "own", "draw": "random"}},
                }
            },
            "variants": {
                name: VariantReport(operations=["zero own" if name in cuts else "zero any"], entries=10, written=False)
                for name in times
            },
            "sweeps": {"any": sweep_report(sweep, summary)},
            "expectations": [],
            "perplexity": perplexities(measures),
            "summary": summary,
            "measurements": {"choice": item},
        }
    )


def column(grid: Grid, head: str) -> list[str]:
    at = grid.heads.index(head)
    return [row.cells[at].text for row in grid.rows]


def test_bounds_of_a_mean_of_draws_are_called_a_range() -> None:
    report = report_of({"cut": 3.0}, DRAWN)
    found = {name: report.averaged(name) for name in ("base", "cut", "any-0")}
    first = languages_table(found, "base", report).rows[0]
    assert (first.cells[2].note[:8], first.cells[3].note) == ("interval", "range 1.01 to 1.06")
    assert first.cells[3].text == f"×{MEAN:.2f}"
    (grid,) = measurement_tables(report, "choice", ["any-0"])
    assert grid.rows[0].cells[1].text == "60.0 %"
    assert grid.rows[0].cells[1].note == "range 50.0 to 70.0 %"
    rows = perplexity_figure(report, tell(report)).spec["data"]["values"]
    told = {row["variant"]: row["interval"] for row in rows if row["variant"] in ("cut", "any-0")}
    assert told["any-0"] == "×1.01 to ×1.06 (range)"
    assert "range" not in told["cut"]


def test_a_control_of_a_languages_own_region_is_named_by_its_draws() -> None:
    grid = own_table(report_of({"cut": 3.0}, DRAWN))
    assert column(grid, "variant") == ["cut", "any, 3 seeds"]
    assert column(grid, "its own ×") == ["3.00", f"{MEAN:.2f}"]


def test_a_single_draw_is_no_range() -> None:
    several = variants_table(report_of({"cut": 3.0}, DRAWN))
    assert column(several, "95 %")[column(several, "variant").index("any, 3 seeds")] == "1.01 to 1.06 (range)"
    report = report_of({"cut": 3.0}, (1.2,))
    single, found = variants_table(report), report.summary["any-0"]
    at = column(single, "variant").index("any, seed 0")
    assert column(single, "95 %")[at] == f"{found.low:.2f} to {found.high:.2f}"
    assert column(single, "×\u00a0base")[at] == "1.20"


def test_a_run_of_draws_alone_is_compared_by_their_mean() -> None:
    runs = [Compared(name, report, tell(report)) for name, report in (("a", report_of({}, DRAWN)),) * 2]
    row = comparison_table(runs).rows[0]
    assert [cell.text for cell in row.cells[2:5]] == ["any, 3 seeds", f"{MEAN:.2f}", "1.01 to 1.06 (range)"]
    data = comparison_data(runs)["a"]
    assert data["ratio_to_base"] == pytest.approx(MEAN)
    assert data["languages"]["en"] == pytest.approx(MEAN)
