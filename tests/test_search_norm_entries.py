"""The search for single norm entries says of an entry what a recipe that scales it measures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from forking import program_forked

import surgeon

SCRIPT = Path(__file__).parent.parent / "scripts" / "search_norm_entries.py"


def test_the_worst_entry_is_as_bad_in_a_recipe(recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe()
    options = ["--languages", "de", "fr", "--dimensions", "3", "--tokens", "64", "--by", "-30", "--show", "12"]
    done = program_forked(SCRIPT, path, "--output", tmp_path / "search", *options)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(\S+)\[(\d+)\]  de x(\S+)  fr x(\S+)  \(", done.stdout, re.MULTILINE)
    assert len(found) == 12  # two norms in each of two layers, three dimensions
    products = [float(german) * float(french) for _, _, german, french in found]
    assert products == pytest.approx(sorted(products, reverse=True), rel=1e-3)  # four digits are shown

    name, index, german, french = found[0]
    data = yaml.safe_load(path.read_text())
    data["regions"] = {"entry": {"entries": [{"tensor": name, "index": [int(index)]}]}}
    data["variants"] = {"scaled": {"operations": [{"scale": "entry", "by": -30}], "write": False}}
    data["verify"] = {"tokens": 64}
    path.write_text(yaml.safe_dump(data))
    report = surgeon.apply(path, output=tmp_path / "again")
    base, scaled = report.perplexity["base"], report.perplexity["scaled"]
    for language, ratio in (("de", german), ("fr", french)):
        assert scaled[language].perplexity / base[language].perplexity == pytest.approx(float(ratio), rel=1e-3)
