"""Expectations of any measurement: by values worked out by hand."""

from __future__ import annotations

import math

import pytest

from surgeon.model.results import Quantity
from surgeon.recipe.schema import ExpectSpec
from surgeon.report.entries import Figure, MeasurementReport
from surgeon.report.expected import came_out, check_expectations, expected

SHARE = Quantity(name="right", title="right", unit="", worse="less", compare="difference", share=True)
REPORT = MeasurementReport(
    title="answers", by="task", quantities=[SHARE],
    found={"cut": {"t": {"right": Figure(value=0.25, pieces=4, change=-0.5, low=-0.75, high=-0.125)}}},
    overall={"cut": {"right": Figure(value=0.5, pieces=8, change=-0.25)}},
)  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "value", "passed", "told", "asked"),
    [
        ({"at_least": 0.5}, 0.5, True, "right 50.0 %", "at least 50.0 %"),
        ({"at_least": 0.5, "group": "t"}, 0.25, False, "right 25.0 %", "at least 50.0 %"),
        ({"change_at_least": -0.3}, -0.25, True, "right −25.0 points from the base", "at least −30.0 points"),
        (
            {"change_at_least": -0.7, "change_at_most": 0.0, "at": "lower", "group": "t"}, -0.75, False,
            "right −75.0 points from the base (lower bound)", "at least −70.0 points and at most +0.0 points",
        ),
        ({"at_most": 1.0, "group": "u"}, math.nan, False, "tests: this was not measured", "at most 1.00"),
        ({"at_most": 1.0, "quantity": "r"}, math.nan, False, "tests: this was not measured", "at most 1.00"),
        (
            {"change_at_most": 1.0, "at": "upper"}, math.nan, False,
            "right nan from the base (upper bound)", "at most +100.0 points",
        ),
    ],
)  # fmt: skip
def test_a_bound_holds_for_the_value_or_the_change(
    keys: dict[str, object], value: float, passed: bool, told: str, asked: str
) -> None:
    expect = ExpectSpec.model_validate({"variant": "cut", "measurement": "tests", **keys})
    (item,) = check_expectations([expect], {}, {}, {"tests": REPORT})
    assert item.value == pytest.approx(value, nan_ok=True)
    assert item.passed is passed
    assert (came_out(item), expected(item)) == (told, asked)
