"""One small run to talk to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import surgeon


@pytest.fixture(scope="module")
def output(llama: Path, texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder: a core cut out, a control drawn twice, and a variant that is measured only."""
    folder = tmp_path_factory.mktemp("talk")
    (folder / "recipe.yaml").write_text(f"""\
version: 1
name: talk
model: {llama}
corpus: {{de: {texts["de"]}, fr: {texts["fr"]}}}
regions:
  core: {{score: {{kind: magnitude}}, select: {{top: 0.2}}, exclude: [norm]}}
  random: {{control: {{of: core, draw: random}}}}
variants:
  cut: {{operations: [{{zero: core}}]}}
  halved: {{operations: [{{scale: core, by: 0.5}}], write: false}}
  drawn: {{operations: [{{zero: random}}], sweep: {{seed: {{set: regions.random.control.seed, to: [0, 1]}}}}}}
verify: {{tokens: 32, window: 16}}
output: {folder / "out"}
""")
    os.environ["SURGEON_CACHE"] = str(folder / "cache")  # before the fixture of each test sets another
    surgeon.apply(folder / "recipe.yaml")
    return folder / "out"
