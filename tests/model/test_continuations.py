"""Continuations against a greedy loop without a cache and against transformers; shown so that nothing can break out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from conftest import FAMILIES, ModelMaker
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.testing import CliRunner

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.cli import app
from surgeon.errors import InputError, RecipeError
from surgeon.model import budgets
from surgeon.model.continuations import continue_prompts, encode_prompts
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import Arguments, Stack, make_stack
from surgeon.model.model import load_model
from surgeon.model.results import Continuation
from surgeon.operations import Zero
from surgeon.operations.edits import Edit, Surgery
from surgeon.progress import Progress
from surgeon.recipe.reading import load_recipe
from surgeon.region.region import Region
from surgeon.region.select import select_evenly
from surgeon.visible import visible


def plain_ids(folder: Path, prompt: str, count: int, bos: bool = False) -> tuple[list[int], list[int]]:
    """The prompt's ids and the greedy ones after it: the whole sequence anew for every token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    start = ([0] if bos else []) + [byte + 2 for byte in _byte_order(prompt)]
    ids = list(start)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return start, ids[len(start) :]


def _byte_order(text: str) -> list[int]:
    """Places of a text's bytes in the alphabet of the tests' tokenizer, which has a token per byte."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # GPT-2's table: printable bytes stand for themselves, the others for letters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(printable)))
    return [alphabet.index(letters[byte]) for byte in text.encode()]


def stack_of(folder: Path) -> Stack:
    return make_stack(load_model(Checkpoint.open(folder), "float32"))


def say(stack: Stack, prompt: str, count: int) -> Continuation:
    prompts = encode_prompts(stack, [prompt], count)
    return continue_prompts(stack, [Variant("base")], prompts, count, Progress())["base"][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likeliest_token_is_taken_each_time(family: str, make_model: ModelMaker) -> None:
    folder = make_model(family, seed=1)
    stack = stack_of(folder)
    found = say(stack, "Alle Menschen", 12)
    _, ids = plain_ids(folder, "Alle Menschen", 12)
    if 1 in ids:  # the end token
        ids = ids[: ids.index(1)]
        assert found.stopped == "end"
    assert found.tokens == len(ids)
    assert found.continuation == stack.loaded.tokenizer.decode(ids)


def test_the_checkpoint_s_own_settings_of_sampling_are_not_heeded(make_model: ModelMaker) -> None:
    folder = make_model("llama", seed=2)
    stack = stack_of(folder)
    before = say(stack, "frei und gleich", 16)
    settings = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0, "max_new_tokens": 3}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    again = stack_of(folder)
    assert say(again, "frei und gleich", 16) == before
    stack.loaded.weights.fill()
    expected = stack.loaded.model.generate(
        torch.tensor([encode_prompts(stack, ["frei und gleich"], 16)[0].ids]),
        generation_config=transformers.GenerationConfig(max_new_tokens=16, do_sample=False, pad_token_id=1),
    )
    assert before.continuation == stack.loaded.tokenizer.decode(expected[0, len("frei und gleich") :])


def test_a_prompt_begins_with_what_the_windows_of_the_perplexity_begin_with(make_model: ModelMaker) -> None:
    two = stack_of(make_model("llama", bos=True, template="</s> <s> $A"))
    assert encode_prompts(two, ["ab"], 10)[0].ids == tuple(two.loaded.tokenizer("ab")["input_ids"])
    folder = make_model("llama", bos=True)
    stack = stack_of(folder)
    start, ids = plain_ids(folder, "é中", 10, bos=True)
    assert encode_prompts(stack, ["é中"], 10)[0].ids == tuple(start)
    assert say(stack, "é中", 10).continuation == stack.loaded.tokenizer.decode(ids)


def test_a_model_that_is_not_a_number_says_so(llama: Path) -> None:
    stack = stack_of(llama)
    stack.loaded.weights.fill()
    with torch.no_grad():
        stack.loaded.model.lm_head.weight.fill_(torch.nan)
    assert say(stack, "a", 5) == Continuation("a", "", 0, "nan")


def test_an_end_token_ends_it(llama: Path) -> None:
    stack = stack_of(llama)
    stack.loaded.weights.fill()
    with torch.no_grad():
        stack.loaded.model.lm_head.weight.zero_()  # all tokens alike: the lowest id wins, and it is no end token
    assert say(stack, "a", 3) == Continuation("a", "<s><s><s>", 3, "length")
    stack.loaded.model.generation_config.eos_token_id = [0, 5]
    assert say(stack, "a", 3) == Continuation("a", "", 0, "end")


@pytest.mark.parametrize("stays", [True, False])
def test_a_text_that_ends_early_counts_as_done(stays: bool, llama: Path) -> None:
    stack = stack_of(llama)
    stack.loaded.weights.fill()
    stack.loaded.weights.stays = stays
    stack.loaded.model.generation_config.eos_token_id = list(range(stack.loaded.model.config.vocab_size))
    units: list[int] = []

    class Counted(Progress):
        @contextmanager
        def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
            units.append(-total)
            yield units.append

    prompts = encode_prompts(stack, ["a", "b"], 7)
    found = continue_prompts(stack, [Variant("base")], prompts, 7, Counted())["base"]
    assert [item.stopped for item in found] == ["end", "end"]
    assert len(units) > 1
    assert sum(units) == 0  # what was announced is what was told as done, so that nothing seems to be left


def test_edits_are_made_once_where_every_token_is_a_sweep(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stack_of(llama)
    checkpoint = stack.loaded.checkpoint
    region = select_region(checkpoint)
    variants = [Variant("base"), Variant("cut", [Zero(zero="r")], {"r": region})]
    prompts = encode_prompts(stack, ["Alle", "Tous"], 6)
    expected = continue_prompts(stack, variants, prompts, 6, Progress())  # by the model's own forward
    assert expected["cut"] != expected["base"]
    made, edit = list[str](), Surgery.edit

    def counted(surgery: Surgery, name: str) -> Edit:
        made.append(name)
        return edit(surgery, name)

    monkeypatch.setattr(Surgery, "edit", counted)
    stack.loaded.weights.stays = False
    assert continue_prompts(stack, variants, prompts, 6, Progress()) == expected
    assert sorted(made) == sorted(region)
    monkeypatch.setattr(budgets, "EDITS_BYTES", 0)  # too many to be kept: made anew for each token
    assert continue_prompts(stack, variants, prompts, 6, Progress()) == expected
    assert len(made) > 2 * len(region)
    for name, slot in stack.loaded.parameters.items():  # and nothing of the cut is left behind
        assert torch.equal(slot.values().detach(), checkpoint.tensor(name))
    real, said = Stack.layer, []

    def full(self: Stack, number: int, hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        if number == 1 and hidden[..., 0].numel() > 14:  # when both texts have eight tokens
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, number, hidden, arguments)

    monkeypatch.setattr(Stack, "layer", full)
    monkeypatch.setattr(Progress, "note", lambda self, line: said.append(line))
    assert continue_prompts(stack, variants, prompts, 6, Progress()) == expected
    assert said == ["out of memory on cpu: 1 of a batch's texts at a time"]


def select_region(checkpoint: Checkpoint) -> Region:
    """A random tenth of every matrix."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items() if len(info.shape) > 1}
    chosen = {name: select_evenly(math.prod(shape), math.prod(shape) // 10, 0, name) for name, shape in shapes.items()}
    return Region.from_indices(chosen, shapes)


def test_what_cannot_be_continued_is_refused(llama: Path) -> None:
    stack = stack_of(llama)
    with pytest.raises(InputError, match="gives no token"):
        encode_prompts(stack, [""], 5)
    with pytest.raises(InputError, match=r"has 60 tokens, which with 5 new ones is more than the model's 64 positions"):
        encode_prompts(stack, ["x" * 60], 5)


PROMPTED = {"  window: 32\n": '  window: 32\n  prompts: ["Alle", "Tous <b>"]\n  new_tokens: 6\n'}


def test_a_run_shows_what_the_written_variant_says(recipe: Callable[..., Path], llama: Path, tmp_path: Path) -> None:
    report = surgeon.apply(recipe(**PROMPTED))
    assert list(report.generations) == ["base", "cut", "control"]
    for name, folder in (("base", llama), ("cut", tmp_path / "out" / "variants" / "cut")):
        for item in report.generations[name]:
            _, ids = plain_ids(folder, item.prompt, 6)
            assert (item.tokens, item.stopped) == (6, "length")
            assert item.continuation == transformers.AutoTokenizer.from_pretrained(folder).decode(ids)
    assert report.generations["cut"] != report.generations["base"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Tous &lt;b&gt;" in page
    assert "Tous <b>" not in page


def test_verify_continues_prompts(llama: Path) -> None:
    arguments = ["verify", str(llama), "--languages", "en", "--tokens", "20", "--new-tokens", "4"]
    arguments += ["--prompt", "ab", "--prompt", "cd"]
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["generations"]["checkpoint"]
    assert [(item["prompt"], item["tokens"]) for item in found] == [("ab", 4), ("cd", 4)]
    assert '"ab" goes on:' in CliRunner().invoke(app, arguments).stdout


def test_prompts_in_a_recipe_are_checked(recipe: Callable[..., Path]) -> None:
    for bad in ('[""]', "[7]", "word"):
        with pytest.raises(RecipeError, match=r"recipe.yaml:\d+: verify.prompts"):
            load_recipe(recipe(**{"  window: 32\n": f"  window: 32\n  prompts: {bad}\n"}))
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+: not YAML: found invalid Unicode character escape code"):
        load_recipe(recipe(**{"  window: 32\n": '  window: 32\n  prompts: ["\\ud800"]\n'}))


@given(st.text())
def test_text_is_shown_on_one_line_and_moves_nothing(text: str) -> None:
    shown = visible(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
    if text.isascii() and text.isprintable():
        assert shown == text


def test_what_languages_are_written_with_stays_as_it_is() -> None:
    for text in ("می‌خواهم", "ക്‍ഷ", "Każdy", "人人有权", "\ufffd\ufffd"):
        assert visible(text) == text
    assert visible("a\nb\x1b[31m\u202ec") == "a↵b\\x1b[31m\\u202ec"
    assert cell_len(visible("\r\x07")) == 6
