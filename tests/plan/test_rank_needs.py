"""What a rank takes, from headers alone; bytes that really travel are held against it in tests/ranks/."""

from __future__ import annotations

import json
from pathlib import Path

from forking import surgeon_forked

from surgeon.api import plan_recipe
from surgeon.plan.elsewhere import rank_needs
from surgeon.progress import Step


def test_work_is_divided_and_weights_are_not(tmp_path: Path) -> None:
    plan = plan_recipe("zero_core", output=tmp_path / "out")
    expected = [Step("score ", 80.0), Step("perplexity", 8.0), Step("page", 3.0)]
    one, two, eight = (rank_needs(plan, ranks, expected) for ranks in (1, 2, 8))
    assert one.memory == plan.peak_memory < two.memory == eight.memory
    assert one.sent == 0
    decoder = sum(info.numel for info in plan.scored_tensors(plan.scores()[0]))
    assert eight.sent == 3 * 4 * decoder  # the sums of its pieces: of 24, four a language
    assert two.sent == 12 * 4 * decoder
    assert one.read == eight.read == 3 * plan.checkpoint.data_bytes  # forward, backward, verification
    assert eight.scratch < one.scratch / 4
    assert (one.seconds, two.seconds, eight.seconds) == (91.0, 47.0, 14.0)


def test_the_plan_says_what_a_rank_takes(tmp_path: Path) -> None:
    command = ["plan", "zero_core", "--ranks", "4", "--output", str(tmp_path / "o")]
    shown = surgeon_forked(*command, COLUMNS="200")
    assert "ranks   4; each about" in shown.stdout
    data = json.loads(surgeon_forked(*command, "--json").stdout)
    assert data["per_rank"]["ranks"] == 4
    assert data["per_rank"]["seconds"] > 0
