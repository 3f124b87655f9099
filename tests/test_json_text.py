"""JSON is JSON: what is not finite is a string, by one rule, wherever something is printed or written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ModelMaker
from forking import surgeon_forked
from reports import make_report
from safetensors.numpy import load_file, save_file

from surgeon.json_text import to_json
from surgeon.report.data import Report
from surgeon.report.entries import SweepReport


def strict(text: str) -> Any:
    """Read JSON as the standard has it: Python's own reader takes NaN and Infinity for numbers."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_what_is_not_finite_becomes_a_string_at_any_depth() -> None:
    data = {"a": [1.5, math.inf, {"b": (-math.inf, math.nan)}], "c": "NaN", "d": None, "e": True}
    assert strict(to_json(data)) == {
        "a": [1.5, "Infinity", {"b": ["-Infinity", "NaN"]}], "c": "NaN", "d": None, "e": True,
    }  # fmt: skip


def test_a_report_with_a_broken_model_is_json_by_the_same_rule() -> None:
    report = make_report()
    report = report.model_copy(update={"sweeps": {"s": SweepReport(axes={"x": [math.inf]}, points={"p": [math.nan]})}})
    data = strict(report.model_dump_json())
    assert data["perplexity"]["broken"]["ar"]["nll"] == "NaN"
    assert data["perplexity"]["broken"]["zh"]["perplexity"] == "Infinity"
    assert data["perplexity"]["broken"]["zh"]["log_perplexity"] == 1e4  # the logarithm stands beside it
    assert data["sweeps"]["s"] == {**data["sweeps"]["s"], "axes": {"x": ["Infinity"]}, "points": {"p": ["NaN"]}}
    again = Report.model_validate_json(report.model_dump_json())
    assert math.isnan(again.perplexity["broken"]["ar"].nll)
    assert again.perplexity["broken"]["zh"].perplexity == math.inf


@pytest.fixture
def broken(make_model: ModelMaker) -> Path:
    """A model with a not-a-number and an infinity among its weights."""
    folder = make_model("llama", seed=11)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][0, :2] = np.nan, np.inf
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_verify_and_diff_print_json_for_a_broken_model(broken: Path, llama: Path) -> None:
    done = surgeon_forked("verify", broken, "--languages", "en", "--tokens", "32", "--window", "16", "--json")
    assert done.returncode == 0, done.stderr
    assert strict(done.stdout)["checkpoint"]["en"]["perplexity"] == "NaN"
    done = surgeon_forked("diff", broken, llama, "--json")
    assert strict(done.stdout)["total"]["not_finite"] == 2


def test_diff_says_by_its_exit_code_that_only_the_config_differs(llama: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    config = json.loads((llama / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 7.0, "hidden_act": "relu"}))
    assert surgeon_forked("diff", llama, other).returncode == 0
    done = surgeon_forked("diff", llama, other, "--exit-code", "--json")
    assert done.returncode == 1
    assert strict(done.stdout)["identical"]
    assert surgeon_forked("diff", llama, llama, "--exit-code").returncode == 0
