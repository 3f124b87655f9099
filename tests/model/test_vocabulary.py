"""A tokenizer with more ids than the model has embeddings is refused by the token, wherever a model meets text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from conftest import ModelMaker, byte_tokenizer

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError, InputError
from surgeon.measure.verification import verify
from surgeon.model.layer_stack import make_stack
from surgeon.model.model import load_model
from surgeon.model.tokenizer import check_ids, check_vocabulary
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.text.corpora import Corpus, FileLocation

SAID = r"the tokenizer gives the token id \d+ \('.+'\), but the model has embeddings for 90 ids only"


def test_ids_beyond_the_embedding_are_refused_by_scoring_and_measuring(
    make_model: ModelMaker, texts: dict[str, str], recipe: Callable[..., Path], llama: Path
) -> None:
    folder = make_model("llama", vocab_size=90)
    corpus = Corpus("c", {"de": FileLocation(Path(texts["de"]))})
    stack = make_stack(load_model(Checkpoint.open(folder), "float32"))
    with pytest.raises(InputError, match=SAID):
        verify(stack, [], corpus, ["de"], VerifySpec(tokens=40, window=16), Progress())
    with pytest.raises(InputError, match=SAID):
        surgeon.score(recipe(**{str(llama): str(folder)}))
    with pytest.raises(CheckpointError, match=SAID):  # before any text is read
        surgeon.plan_recipe(recipe(**{str(llama): str(folder)}))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(InputError, match=SAID):
        surgeon.perplexity(model, byte_tokenizer(), corpus={"de": texts["de"]}, tokens=40, window=16)


def test_the_last_id_of_the_embedding_is_no_mistake(make_model: ModelMaker) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(make_model("llama", vocab_size=90))
    check_ids(model, byte_tokenizer(), [[0, 89], []])
    with pytest.raises(InputError, match=r"id 90 "):
        check_ids(model, byte_tokenizer(), [[0], [90, 1]])


def test_added_tokens_beyond_the_embedding_are_no_mistake_until_a_text_holds_one(make_model: ModelMaker) -> None:
    """Gemma 3 1B has one, for pictures that it cannot see."""
    model = transformers.AutoModelForCausalLM.from_pretrained(make_model("llama"))
    tokenizer = byte_tokenizer()
    rows = int(model.get_input_embeddings().weight.shape[0])
    tokenizer.add_tokens([f"<picture {number}>" for number in range(1 + rows - len(tokenizer))])
    assert len(tokenizer) > rows
    check_vocabulary(model, tokenizer)
    with pytest.raises(InputError, match="<picture"):
        check_ids(model, tokenizer, [tokenizer("<picture 0>" + f"<picture {rows - 258}>")["input_ids"]])
