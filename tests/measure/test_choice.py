"""Questions of four ends: made as promised, answered as whole models answer them, and the harness's own figures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import ModelMaker

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import InputError
from surgeon.measure.choice import ENDS, questions, write_choice_tasks
from surgeon.measure.verification import verify
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import make_stack
from surgeon.model.model import load_model
from surgeon.operations import Scale
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region
from surgeon.text.corpora import Corpus, FileLocation, builtin_corpus
from surgeon.write.staging import write_variant

NAME = "model.layers.1.mlp.down_proj.weight"
ITEMS = 6
SPEC = VerifySpec.model_validate({"tokens": 8, "window": 400, "divergence": False, "choice": {"items": ITEMS}})


@pytest.mark.parametrize("language", ["en", "zh", "ar", "ml"])
def test_ends_are_of_the_text_alike_in_length_and_one_is_the_paragraph_s_own(language: str) -> None:
    text = builtin_corpus("udhr30").text(language).evaluate
    paragraphs = [line.strip() for line in text.splitlines()]
    made = questions(text, language, 40)
    assert len(made) == 40
    for item in made:
        own = item.beginning + item.ends[item.right]
        assert paragraphs[item.paragraph].startswith(own)
        assert len(set(item.ends)) == ENDS
        for end in item.ends:
            assert sum(end in paragraph for paragraph in paragraphs) >= 1
        lengths = [len(end) for end in item.ends]
        assert max(lengths) <= 2 * min(lengths)
        wrong = [end for end in item.ends if end != item.ends[item.right]]
        assert not any(paragraphs[item.paragraph].startswith(item.beginning + end) for end in wrong)
    # No place is right more often than chance lets it be, and the own end is not the longest or the shortest one.
    assert max(np.bincount([item.right for item in made])) < 22
    ranks = [sorted(item.ends, key=len).index(item.ends[item.right]) for item in made]
    assert max(np.bincount(ranks)) < 26
    assert questions(text, language, 40) == made
    assert all(one.paragraph <= other.paragraph for one, other in pairwise(made))


def plain_answers(folder: Path, language: str) -> list[bool]:
    """Each end after its beginning, alone through the whole model: its log-likelihood per character."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    right = []
    for item in questions(builtin_corpus("udhr30").text(language).evaluate, language, ITEMS):
        each = []
        for end in item.ends:
            before = tokenizer(item.beginning)["input_ids"]
            ids = tokenizer(item.beginning + end)["input_ids"]
            with torch.no_grad():
                logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            total = sum(float(logs[at - 1, ids[at]]) for at in range(len(before), len(ids)))
            each.append(total / len(end))
        right.append(int(np.argmax(each)) == item.right)
    return right


def test_accuracy_is_that_of_whole_models_and_of_the_harness(make_model: ModelMaker, tmp_path: Path) -> None:
    llama = make_model("llama", max_position_embeddings=512)  # the harness cuts what is longer
    checkpoint, corpus = Checkpoint.open(llama), builtin_corpus("udhr30")
    shape = checkpoint.info(NAME).shape
    region = Region.from_masks({NAME: np.ones(shape, np.bool_)})
    operations = [Scale(scale="r", by=-3.0)]
    write_variant(checkpoint, operations, {"r": region}, tmp_path / "cut")
    stack = make_stack(load_model(checkpoint, "float32"))
    found = verify(
        stack, [Variant("base"), Variant("cut", operations, {"r": region})], corpus, ["en", "zh"], SPEC, Progress()
    )
    for name, folder in {"base": llama, "cut": tmp_path / "cut"}.items():
        for language in ("en", "zh"):
            sums = found.figures[name]["choice"].groups[language]["accuracy"]
            assert sum(sums.weights) == ITEMS
            assert sums.value == sum(plain_answers(folder, language)) / ITEMS
    harness = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    write_choice_tasks(tmp_path / "tasks", corpus, ["en", "zh"], ITEMS)
    asked: dict[str, Any] = harness.simple_evaluate(
        model="hf", model_args={"pretrained": str(llama), "dtype": "float32", "device": "cpu"},
        tasks=["surgeon_choice"], bootstrap_iters=0,
        task_manager=harness.tasks.TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
    )  # fmt: skip
    for language in ("en", "zh"):
        accuracy = asked["results"][f"surgeon_choice_{language}"]["acc_norm,none"]
        assert accuracy == found.figures["base"]["choice"].groups[language]["accuracy"].value


def test_a_text_without_questions_is_refused_by_its_language(
    llama: Path, texts: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "de.txt").write_text("Ein Satz.\nNoch einer.\n", encoding="utf-8")
    stack = make_stack(load_model(Checkpoint.open(llama), "float32"))
    corpus = Corpus("c", {"de": FileLocation(tmp_path / "de.txt")})
    with pytest.raises(InputError, match=r"the text for 'de' is too short for `verify.choice`"):
        verify(stack, [Variant("base")], corpus, ["de"], SPEC, Progress())
