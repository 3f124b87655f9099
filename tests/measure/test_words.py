"""Losses token by token: by whole transformers models; what tokens say and are, by the text itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.measure import words as kind_of_measurement
from surgeon.measure.perplexity import evaluation_texts
from surgeon.measure.verification import verify
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import make_stack
from surgeon.model.model import load_model
from surgeon.operations import Scale
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region
from surgeon.report.html import words
from surgeon.report.measured import measurement_reports, passages
from surgeon.text.corpora import Corpus, FileLocation, builtin_corpus
from surgeon.write.staging import write_variant

NAME = "model.layers.1.mlp.down_proj.weight"
SPEC = VerifySpec.model_validate(
    {"tokens": 60, "window": 16, "batch_size": 2, "divergence": False, "words": {"passage": 40}}
)


def plain(folder: Path, windows) -> list[float]:  # type: ignore[no-untyped-def]
    """The losses of the first 40 predicted tokens, window by window through the whole model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    losses: list[float] = []
    for window in windows:
        with torch.no_grad():
            logs = model(torch.tensor([window.inputs])).logits[0].log_softmax(-1)
        losses += [-float(logs[i, label]) for i, label in enumerate(window.labels, len(logs) - len(window.labels))]
    return losses[:40]


def test_losses_are_those_of_whole_models_and_tokens_are_the_text(
    llama: Path, texts: dict[str, str], tmp_path: Path
) -> None:
    checkpoint, corpus = (
        Checkpoint.open(llama),
        Corpus("c", {code: FileLocation(Path(texts[code])) for code in ("de", "fr")}),
    )
    region = Region.from_masks({NAME: np.ones(checkpoint.info(NAME).shape, np.bool_)})
    operations = [Scale(scale="r", by=-3.0)]
    write_variant(checkpoint, operations, {"r": region}, tmp_path / "cut")
    stack = make_stack(load_model(checkpoint, "float32"))
    variants = [Variant("base"), Variant("cut", operations, {"r": region})]
    found = verify(stack, variants, corpus, ["de", "fr"], SPEC, Progress())
    windows = evaluation_texts(stack.loaded.tokenizer, corpus, ["de", "fr"], SPEC)
    for name, folder in {"base": llama, "cut": tmp_path / "cut"}.items():
        for sample in found.figures[name]["words"].samples:
            text = corpus.text(sample["language"]).evaluate
            assert sample["losses"] == pytest.approx(plain(folder, windows[sample["language"]].windows), abs=1e-4)
            # The tokenizer has a token per byte; the first of the text cannot be predicted, and is none of these.
            assert "".join(sample["tokens"]) == text.encode()[1:41].decode()
    shown = passages(found)
    assert list(shown) == ["de", "fr"]
    assert set(shown["fr"].losses) == {"base", "cut"}
    (item,) = measurement_reports(found, [SPEC.measurements[1]]).values()
    assert not item.overall
    tokens = found.figures["cut"]["words"].samples
    losses = [
        loss for one in tokens for loss, text in zip(one["losses"], one["tokens"], strict=True) if text in (" ", ".")
    ]
    assert item.found["cut"]["punctuation"]["loss"].value == pytest.approx(np.mean(losses), abs=1e-5)


def test_words_of_a_text_and_the_kinds_of_their_tokens() -> None:
    said = [" Art", "icle", " 3", ".", "\n", "L", "'", "\u00eatre", "", " hum", "ain"] + [" a"] * 3
    labels = [*range(1, 12), 20, 20, 20]
    made = kind_of_measurement._passage("fr", said, labels, kind_of_measurement.Counter(labels))
    assert made.words == [0, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13]
    first, later = "first of a word", "later in a word"
    positions = [first, later, "digits", "punctuation", "punctuation", first, "punctuation", first, later, first, later]
    assert [kinds[0] for kinds in made.kinds] == positions + [first] * 3
    assert [kinds[1:] for kinds in made.kinds] == [["rare"]] * 11 + [["frequent"]] * 3
    japanese = builtin_corpus("udhr30").text("ja").evaluate[:60]
    made = kind_of_measurement._passage("ja", list(japanese), [7] * 60, kind_of_measurement.Counter([7]))
    assert made.words == list(range(60))


def test_a_word_s_loss_is_its_tokens_and_what_is_no_number_is_worst() -> None:
    from surgeon.report.entries import PassageReport

    losses = {"base": [1.0, 2.0, 1.0, 1.0], "cut": [2.0, 5.0, 1.5, None]}
    passage = PassageReport(tokens=[" Art", "icle", " 3", " x"], words=[0, 2, 3], losses=losses)
    assert [(word.blank, word.text, word.tone, word.note) for word in words(passage, "cut")] == [
        (" ", "Article", "worse-still", "3.0 nats, then 7.0"),
        (" ", "3", "", "1.0 nats, then 1.5"),
        (" ", "x", "worst", "1.0 nats, then not a number"),
    ]
