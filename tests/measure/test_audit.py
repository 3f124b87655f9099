"""Audits: bits per byte beside plain transformers, verdicts beside plain statistics, and what the command writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import ModelMaker, byte_tokenizer
from typer.testing import CliRunner

from surgeon.auditing import audit, texts_for
from surgeon.cli import app
from surgeon.errors import InputError
from surgeon.measure.verdicts import Audit, verdicts
from surgeon.model.results import Sums
from surgeon.report.audit import card_section
from surgeon.report.words import text_alone

LINES = [
    f"Paragraph {n} says that everyone{' and all others' * n} may {'sing' if n % 2 else 'dance'}." for n in range(7)
]


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "q1.txt").write_text("\n".join(LINES), encoding="utf-8")
    (folder / "q2.txt").write_text("\n\n".join(f"Ünd {line} ß" for line in LINES), encoding="utf-8")
    return folder


def _outputs(model: Path, line: str, window: int) -> tuple[Any, list[int]]:
    """Log-probabilities of a paragraph's predicted tokens by the whole model, window by window, each after <s>."""
    import torch
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = byte_tokenizer()(line)["input_ids"]
    parts = []
    for start in range(0, len(ids), window):
        row = torch.tensor([[0, *ids[start : start + window]]])
        with torch.no_grad():
            parts.append(loaded(row).logits[0, :-1].double().log_softmax(-1))
    return torch.cat(parts), ids


def test_bits_and_divergence_are_those_of_whole_models_whatever_the_tokenizer_begins_with(
    make_model: ModelMaker, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, model = make_model("llama"), make_model("gpt2", seed=3, bos=True)
    corpus, codes = texts_for([], [text_folder])
    found = audit(model, base, corpus=corpus, languages=codes, prompts=0, window=32, device="cpu")
    assert not found.same_tokenizer
    assert {one.language for one in found.changes} == {"q1", "q2"}
    for one in found.changes:
        lines = corpus.text(one.language).evaluate.splitlines()
        size = sum(len(line.encode()) for line in lines)
        pairs = [[_outputs(which, line, 32) for which in (base, model)] for line in lines]
        bits = [
            -sum(float(logs[range(len(ids)), ids].sum()) for logs, ids in of_model) / math.log(2) / size
            for of_model in zip(*pairs, strict=True)
        ]
        assert [one.base_bits, one.bits] == pytest.approx(bits, rel=1e-5)
        assert one.change == pytest.approx(bits[1] / bits[0] - 1, abs=1e-5)
        assert one.paragraphs == len(LINES)
        tokens = sum(len(ids) for (_, ids), _ in pairs)
        assert one.kl == pytest.approx(
            sum(float((p.exp() * (p - q)).sum()) for (p, _), (q, _) in pairs) / tokens, rel=1e-4
        )
        same = sum(int((p.argmax(-1) == q.argmax(-1)).sum()) for (p, _), (q, _) in pairs)
        assert one.agreement == pytest.approx(same / tokens)
    # Of models that choose among different numbers of tokens, bits alone; of one that takes in images, text alone.
    monkeypatch.setattr("surgeon.auditing.senses", lambda checkpoint: ["vision"])
    more = audit(
        make_model("llama", vocab_size=260), base, corpus=corpus, languages=["q1"], prompts=0, window=32, device="cpu"
    )
    assert more.changes[0].kl is None
    assert text_alone(["vision"]) in card_section(more)
    assert more.changes[0].base_bits == next(one.base_bits for one in found.changes if one.language == "q1")


def test_verdicts_follow_the_stated_thresholds() -> None:
    size = (100.0,) * 8
    base = {
        name: Sums(tuple(100.0 + i for i in range(8)), size) for name in ("same", "worse", "lost", "lot", "gone", "nan")
    }
    by = {"same": 1.019, "worse": 1.03, "lost": 1.26, "gone": 1.0, "nan": math.nan}
    model = {name: Sums(tuple(by.get(name, 1.0) * t for t in sums.totals), size) for name, sums in base.items()}
    # A rise by lot: half of the paragraphs up by a third, the others down by nearly as much.
    model["lot"] = Sums(tuple(t * (1.33 if i % 2 else 0.75) for i, t in enumerate(base["lot"].totals)), size)
    stays = {"gone": (Sums((1.0,) * 4, (1.0,) * 4), Sums((1.0, 0.0, 0.0, 0.0), (1.0,) * 4))}
    found = verdicts(base, model, stays, {"gone": "en 3"})
    assert {one.language: one.verdict for one in found} == {
        "same": "kept", "worse": "worse", "lost": "lost", "lot": "kept", "gone": "lost", "nan": "lost",
    }  # fmt: skip
    assert [one.verdict for one in found] == ["lost"] * 3 + ["worse"] + ["kept"] * 2


def test_the_command_writes_page_badge_and_card_and_the_gate_ends_with_one(
    make_model: ModelMaker, text_folder: Path, tmp_path: Path
) -> None:
    base, model = make_model("llama"), make_model("llama", seed=1)
    arguments = [
        "audit",
        str(model),
        "--base",
        str(base),
        "--languages",
        "none",
        "--text",
        str(text_folder),
        "--prompts",
        "0",
    ]
    arguments += ["--output", str(tmp_path / "audit")]
    done = CliRunner().invoke(app, [*arguments, "--json", "--gate", "lost=0"])
    data: dict[str, Any] = json.loads(done.stdout)
    lost = data["counts"]["lost"]
    assert (done.exit_code, data["passed"]) == ((1, False) if lost else (0, True))
    assert CliRunner().invoke(app, [*arguments, "--gate", "lost=2,worse=2"]).exit_code == 0
    for arguments_too, processes in ((["--gate", "perhaps=1"], "1"), ([], "2")):
        refused = CliRunner(env={"RANK": "0", "WORLD_SIZE": processes}).invoke(app, [*arguments, *arguments_too])
        assert isinstance(refused.exception, InputError)
    for name in ("badge.svg", "audit.svg"):
        ElementTree.fromstring((tmp_path / "audit" / name).read_text(encoding="utf-8"))
    page = (tmp_path / "audit/audit.html").read_text(encoding="utf-8")
    card = (tmp_path / "audit/card.md").read_text(encoding="utf-8")
    for one in data["languages"].values():
        assert f">{one['verdict']}</span>" in page
        assert f"| {one['name']} | {one['verdict']} |" in card
    assert "http:" not in page.replace("http://www.w3.org", "")  # it needs nothing else
    assert "https:" not in page


def test_no_name_of_a_file_reaches_the_terminal_as_more_than_text(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "q\x1b[2J"
    sums = Sums((10.0, 11.0), (5.0, 5.0))
    changes = tuple(verdicts({name: sums}, {name: sums}, {}, {}))
    monkeypatch.setattr("surgeon.auditing.audit", lambda *_, **__: Audit("m", "b", True, changes, {name: name}))
    done = CliRunner().invoke(app, ["audit", "m", "--base", "b", "--languages", "none"], catch_exceptions=False)
    assert "kept" in done.stdout
    assert "\x1b" not in done.stdout
