"""Divergence from the base: by whole transformers models, one token at a time in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.measure.perplexity import evaluation_texts
from surgeon.measure.verification import verify
from surgeon.model import budgets
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import make_stack
from surgeon.model.model import load_model
from surgeon.operations import Operation, Scale, Zero
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region
from surgeon.text.corpora import Corpus, FileLocation
from surgeon.write.staging import write_variant

SPEC = VerifySpec.model_validate({"tokens": 50, "window": 16, "batch_size": 2})
DOWN, HEAD = "model.layers.1.mlp.down_proj.weight", "lm_head.weight"


def plain(before: Path, after: Path, windows) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """The mean of sum p (ln p - ln q) over all predicted tokens, and the share of equal likeliest tokens."""
    models = [transformers.AutoModelForCausalLM.from_pretrained(f, dtype=torch.float64) for f in (before, after)]
    nats, same = [], []
    for window in windows:
        with torch.no_grad():
            p, q = (model(torch.tensor([window.inputs])).logits[0].log_softmax(-1).numpy() for model in models)
        for at in range(len(window.inputs) - len(window.labels), len(window.inputs)):
            nats.append(math.fsum(math.exp(p[at, i]) * (p[at, i] - q[at, i]) for i in range(p.shape[1])))
            same.append(int(np.argmax(p[at]) == np.argmax(q[at])))
    return sum(nats) / len(nats), sum(same) / len(same)


def test_divergence_is_its_definition_whatever_part_is_edited(
    llama: Path, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of a few tokens: each variant is compared with the base's same chunk, also where the head is edited."""
    monkeypatch.setattr(budgets, "LOGITS_BYTES", 0)
    monkeypatch.setattr(budgets, "FEWEST_TOKENS", 5)
    checkpoint = Checkpoint.open(llama)
    edits: dict[str, tuple[str, Operation]] = {
        "middle": (DOWN, Zero(zero="r")), "head": (HEAD, Zero(zero="r")), "hardly": (DOWN, Scale(scale="r", by=1.05)),
    }  # fmt: skip
    variants, corpus = [Variant("base")], Corpus("c", {code: FileLocation(Path(texts[code])) for code in ("de", "fr")})
    for name, (tensor, operation) in edits.items():
        shape = checkpoint.info(tensor).shape
        region = Region.from_indices({tensor: np.arange(0, math.prod(shape), 3)}, {tensor: shape})
        variants.append(Variant(name, [operation], {"r": region}))
        write_variant(checkpoint, [operation], {"r": region}, tmp_path / name)
    stack = make_stack(load_model(checkpoint, "float32"))
    found = verify(stack, variants, corpus, ["de", "fr"], SPEC, Progress())
    assert "divergence" not in found.figures["base"]
    windows = evaluation_texts(stack.loaded.tokenizer, corpus, ["de", "fr"], SPEC)
    for name in edits:
        for language, by_name in found.figures[name]["divergence"].groups.items():
            nats, same = plain(llama, tmp_path / name, windows[language].windows)
            assert nats > 0
            assert by_name["kl"].value == pytest.approx(nats, rel=1e-3, abs=1e-7)
            assert by_name["kl_bits"].value == pytest.approx(nats / math.log(2), rel=1e-3, abs=1e-7)
            assert by_name["agreement"].value == same
            assert sum(by_name["kl"].weights) == 50
    # The base's figures known already, the others' are the same; and what does not compare needs no base.
    again = verify(stack, variants, corpus, ["de", "fr"], SPEC, Progress(), {"head": ["divergence"]})
    assert again.figures == {"base": {}, "middle": {}, "hardly": {}, "head": found.figures["head"]}
    assert not again.measures
