"""Rows by token: in memory, also of tokens that were added, and in a recipe. Rows are counted by their raw bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import byte_tokenizer
from freezing import batches, load, saved_state, tiny_model

import surgeon
from surgeon.api import plan_recipe
from surgeon.errors import FreezeError, RecipeError
from surgeon.freeze import Bundle, FreezeCallback, freeze, token_rows, verify_saved

ENDS = ("model.embed_tokens.weight", "lm_head.weight")


def changed_rows(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> dict[str, set[int]]:
    """Rows of each tensor that differ in bits."""
    found = {}
    for name, old in before.items():
        differs = old.view(torch.int32) != after[name].detach().view(torch.int32)
        rows = differs.reshape(len(old), -1).any(1).nonzero().view(-1).tolist()
        if rows:
            found[name] = set(rows)
    return found


def train(model: Any, steps: int = 3, vocabulary: int = 64) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for seed in range(steps):
        tokens = torch.randint(0, vocabulary, (2, 16), generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()


def bits_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
def test_only_tokens_that_were_added_train(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    model.resize_token_embeddings(70)
    frozen = freeze(model, token_rows(model, [[64, 69]]), train_only=True)
    before = bits_of(model)
    train(model, vocabulary=70)
    added = set(range(64, 70))
    assert changed_rows(before, bits_of(model)) == {name: added for name in ENDS if name in before}
    total = sum(parameter.numel() for parameter in model.parameters())
    assert frozen.verify() == total - 6 * 32 * (1 if tied else 2)


def test_rows_are_kept_while_all_else_trains() -> None:
    model, tokenizer = tiny_model(vocab_size=258), byte_tokenizer()
    frozen = freeze(model, token_rows(model, ["</s>", 7, "e"], tokenizer))
    before = bits_of(model)
    train(model, vocabulary=258)
    kept = {1, 7, tokenizer.get_vocab()["e"]}
    changed = changed_rows(before, bits_of(model))
    assert {name: set(range(258)) - changed[name] for name in ENDS} == dict.fromkeys(ENDS, kept)
    assert changed.keys() == before.keys()
    assert frozen.verify() == 2 * 3 * 32


def test_a_region_given_to_the_trainer_trains_alone(tmp_path: Path) -> None:
    model = tiny_model()
    before = bits_of(model)
    callback = FreezeCallback(token_rows(model, [5, [9, 11]]), train_only=True)
    rows = [{key: value[0] for key, value in batch.items()} for batch in batches(4)]
    options = {"output_dir": str(tmp_path), "max_steps": 2, "report_to": [], "use_cpu": True, "weight_decay": 0.1}
    arguments = transformers.TrainingArguments(**options, save_steps=2, disable_tqdm=True)
    transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback]).train()
    saved = saved_state(tmp_path / "checkpoint-2")
    assert changed_rows(before, saved) == {key: {5, 9, 10, 11} for key in ENDS}


def test_what_is_no_row_is_refused(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    for tokens, message in (
        ([64], "token 64: the rows are those of tokens 0 to 63"),
        ([[60, 70]], "token 60 to 70: the rows"),
        (["ab"], r"'ab' is no single token of the tokenizer, which makes \[\d+, \d+\]"),
    ):
        with pytest.raises(FreezeError, match=message):
            token_rows(model, tokens, tokenizer)
    with pytest.raises(FreezeError, match="only the tokenizer says"):
        token_rows(model, ["a"])


def test_tokens_in_a_recipe(light_recipe: Callable[..., Path], tmp_path: Path, llama: Path) -> None:
    added = (
        "  narrow: {train_only: {tokens: ['a', [10, 12]]}}\n  kept: {freeze: {tokens: [3]}}\n"
        "  by-name: {freeze: some}\n"
    )
    variants = "  control: {operations: [{zero: bottom}], write: false}\n"
    regions = "regions:\n  some: {tokens: [4, 5], exclude: [head]}\n"
    surgeon.apply(light_recipe(**{variants: variants + added, "regions:\n": regions}), jobs=1)
    folder = tmp_path / "out" / "variants"
    before = saved_state(llama)
    letter = transformers.AutoTokenizer.from_pretrained(llama).get_vocab()["a"]
    model = load(folder / "narrow")
    freeze(model, folder / "narrow")
    train(model)
    model.save_pretrained(tmp_path / "trained")
    names = [name for name in ENDS if name in before]
    assert changed_rows(before, saved_state(tmp_path / "trained")) == {key: {letter, 10, 11, 12} for key in names}
    assert verify_saved(tmp_path / "trained", folder / "narrow") == Bundle.load(folder / "narrow").entries
    width = before[ENDS[0]].shape[1]
    assert Bundle.load(folder / "kept").entries == len(names) * width
    assert Bundle.load(folder / "by-name").region.entries == 2 * width
    again = surgeon.apply(tmp_path / "out" / "recipe.yaml", output=tmp_path / "again", jobs=1)
    assert "train only narrow-tokens" in again.variants["narrow"].operations


def test_a_row_of_a_position_is_none_of_a_token(
    light_recipe: Callable[..., Path], make_model: Callable[..., Path], llama: Path
) -> None:
    """Token 70 has a row among the embeddings; the table of positions has 64."""
    regions = "regions:\n  some: {tokens: [70]}\n"
    plan = plan_recipe(light_recipe(**{str(llama): str(make_model("gpt2")), "regions:\n": regions}))
    assert [info.name for info in plan.regions["some"].tensors] == ["transformer.wte.weight"]


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("{train_only: {tokens: [99999]}}", "token 99999: the rows are those of tokens 0 to"),
        ("{freeze: {tokens: ['no such token']}}", "'no such token' is no single token of the tokenizer"),
        ("{freeze: {token: [3]}}", "a region's name, or `{tokens: [...]}` alone"),
        ("{freeze: {tokens: []}}", "tokens"),
    ],
)
def test_recipes_with_tokens_that_are_none(light_recipe: Callable[..., Path], variant: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        plan_recipe(light_recipe(**{"{operations: [{zero: core}]}": variant}))
