"""examples/upcycle.py makes a mixture that says what the dense model says, before it is trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from forking import program_forked

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint

ROOT = Path(__file__).parents[2]


def loss(folder: Path) -> float:
    """Mean negative log-likelihood of a sentence, by transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("All human beings are born free and equal in dignity and rights.", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]))


@pytest.mark.slow
def test_a_mixture_of_the_builtin_model_begins_where_that_ends(tmp_path: Path) -> None:
    done = program_forked(ROOT / "examples" / "upcycle.py", tmp_path / "mixture", "--steps", "0")
    assert done.returncode == 0, done.stderr
    assert loss(tmp_path / "mixture") == pytest.approx(loss(Checkpoint.open("builtin:tiny30").folder), rel=0.02)
    few = ["model=" + str(tmp_path / "mixture"), "regions.experts.score.samples=1", "verify.tokens=64"]
    few += ["regions.random.select.random=0.0625", "verify.languages=[en]"]
    report = surgeon.apply("methods/super_experts", output=tmp_path / "out", overrides=few)
    assert report.regions["experts"].entries == 3 * 3 * 200 * 400
    assert set(report.regions["experts"].roles) <= {"mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down"}
