"""The script that says how sure the rises of docs/paper.md are finds the sums of a run where the run keeps them."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

import surgeon

SCRIPT = Path(__file__).parents[1] / "scripts/rise_intervals.py"


def test_a_rise_has_an_interval(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(**{"  cut: {operations: [{zero: core}]}": "  de-own: {operations: [{zero: core}], write: false}"})
    output = surgeon.plan_recipe(path).output
    surgeon.apply(path)
    monkeypatch.setattr("sys.argv", [str(SCRIPT), str(output)])
    capsys.readouterr()
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert re.fullmatch(r"de-own: rise -?\d+\.\d to -?\d+\.\d\n", capsys.readouterr().out)
