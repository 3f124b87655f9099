"""Perplexity against a plain loop over single predictions; edits in memory against edits on disk."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ModelMaker
from hypothesis import given
from hypothesis import strategies as st
from measured import measure_variants

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.measure.perplexity import EvaluationText, evaluation_texts
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import Stack, make_stack
from surgeon.model.model import load_model
from surgeon.model.results import Measure, geometric_mean
from surgeon.operations import OPERATIONS
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region
from surgeon.text.corpora import Corpus, FileLocation
from surgeon.text.windows import Tokens, evaluation_windows
from surgeon.write.staging import write_variant


@given(st.integers(2, 60), st.integers(0, 3), st.integers(2, 40), st.integers(3, 12), st.data())
def test_each_token_is_predicted_once_from_the_tokens_before_it(
    length: int, begun: int, limit: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    tokens = Tokens(tuple(range(100, 100 + length)), tuple(range(1, length + 1)))
    windows, size = evaluation_windows(tokens, (7, 8, 9)[:begun], limit, window, stride)
    stride = min(stride, window - max(begun - 1, 0))
    predicted = [label for item in windows for label in item.labels]
    first = 0 if begun else 1
    assert predicted == list(tokens.ids[first : limit + first])
    assert size == len(predicted)
    for item in windows:
        assert len(item.labels) <= stride
        assert len(item.labels) <= len(item.inputs) <= window
        context = item.inputs[begun:]
        assert item.inputs[:begun] == (7, 8, 9)[:begun]
        sequence = [*context, item.labels[-1]]
        assert sequence == list(range(sequence[0], sequence[0] + len(sequence)))
        # As much context as the window holds beside the new tokens, or all that there is.
        there = item.labels[-1] - 100 + begun
        assert len(item.inputs) == min(window - stride + len(item.labels), there)


def stack_of(folder: Path, precision: str = "float32") -> Stack:
    return make_stack(load_model(Checkpoint.open(folder), precision))  # type: ignore[arg-type]


def prepared(stack: Stack, corpus: Corpus, spec: VerifySpec, languages: tuple[str, ...] = ("de",)):  # type: ignore[no-untyped-def]
    return evaluation_texts(stack.loaded.tokenizer, corpus, languages, spec)


def measure(stack: Stack, texts: dict[str, EvaluationText], batch: int, variant: Variant = Variant("base")) -> Measure:  # noqa: B008
    return measure_variants(stack, [variant], texts, batch, Progress())[variant.name]["de"]


def plain_nll(folder: Path, ids: list[int], window: int) -> float:
    """One forward pass per predicted token, in float64, with the context its window gives it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
    total = 0.0
    for start in range(1, len(ids), window):
        for target in range(start, min(start + window, len(ids))):
            with torch.no_grad():
                logits = model(torch.tensor([ids[start - 1 : target]])).logits[0, -1]
            total -= float(logits.log_softmax(-1)[ids[target]])
    return total


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_perplexity_is_the_definition(family: str, make_model: ModelMaker, texts: dict[str, str]) -> None:
    folder = make_model(family)
    corpus = Corpus("c", {"de": FileLocation(Path(texts["de"]))})
    spec = VerifySpec(tokens=50, window=16, batch_size=3)
    stack = stack_of(folder)
    found = measure(stack, prepared(stack, corpus, spec), 3)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(corpus.text("de").evaluate)["input_ids"][:51]
    expected = plain_nll(folder, ids, 16)
    assert found.tokens == 50
    assert found.nll == pytest.approx(expected, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(expected / 50), rel=1e-5)
    assert found.bytes == 50  # one token a byte, and the first is not predicted
    assert sum(count for _, count in found.pieces) == 50
    assert found.nll == pytest.approx(math.fsum(nll for nll, _ in found.pieces), rel=1e-12)
    plain = {
        language: EvaluationText(text.windows, text.bytes) for language, text in prepared(stack, corpus, spec).items()
    }
    found = measure(stack, plain, 3)
    assert [count for _, count in found.pieces] == [16, 16, 16, 2]
    first = plain_nll(folder, ids[:17], 16)
    assert found.pieces[0][0] == pytest.approx(first, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(expected / 50 / math.log(2), rel=1e-5)


def test_a_tokenizer_with_bos_begins_every_window_with_it(make_model: ModelMaker, texts: dict[str, str]) -> None:
    folder = make_model("llama", bos=True)
    text = prepared(
        stack_of(folder), Corpus("c", {"de": FileLocation(Path(texts["de"]))}), VerifySpec(tokens=40, window=16)
    )
    assert all(window.inputs[0] == 0 for window in text["de"].windows)
    assert text["de"].bytes == 40


def test_two_tokens_that_a_tokenizer_begins_with_are_before_every_window(
    make_model: ModelMaker, texts: dict[str, str]
) -> None:
    folder = make_model("llama", bos=True, template="</s> <s> $A")
    corpus = Corpus("c", {"de": FileLocation(Path(texts["de"]))})
    stack = stack_of(folder)
    found = measure(stack, prepared(stack, corpus, VerifySpec(tokens=40, window=17)), 3)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    start, ids = [1, 0], tokenizer(corpus.text("de").evaluate)["input_ids"]
    assert ids[:2] == start
    ids, expected = ids[2:42], 0.0
    for first in range(0, 40, 16):  # two tokens and fifteen of the text predict sixteen
        for target in range(first, min(first + 16, 40)):
            with torch.no_grad():
                logits = model(torch.tensor([start + ids[first:target]])).logits[0, -1]
            expected -= float(logits.log_softmax(-1)[ids[target]])
    assert found.tokens == 40
    assert found.bytes == 40
    assert found.nll == pytest.approx(expected, rel=1e-5)


def test_bytes_count_whole_characters(make_model: ModelMaker, tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a\nüüü中\n", encoding="utf-8")
    text = prepared(stack_of(make_model("llama")), Corpus("c", {"x": FileLocation(path)}), VerifySpec(), ("x",))["x"]
    assert text.bytes == len("üüü中\n".encode()) - len("ü".encode())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", "float32"), ("float32", "bfloat16"), ("native", "bfloat16")]
)
def test_an_edit_in_memory_measures_as_the_written_variant_and_is_undone(
    precision: str, dtype: str, make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    source = Checkpoint.open(make_model("llama", dtype=dtype))
    region = Region.from_indices(
        {"model.layers.0.mlp.down_proj.weight": torch.arange(0, 700, 2).numpy()},
        {"model.layers.0.mlp.down_proj.weight": (32, 48)},
    )
    operations = [OPERATIONS["zero"](zero="r")]
    write_variant(source, operations, {"r": region}, tmp_path / "v")
    corpus, spec = Corpus("c", {"de": FileLocation(Path(texts["de"]))}), VerifySpec(tokens=40, window=16)

    def nll(stack: Stack, variant: Variant = Variant("base")) -> float:  # noqa: B008
        return measure(stack, prepared(stack, corpus, spec), 4, variant).nll

    stack = stack_of(source.folder, precision)
    before = nll(stack)
    inside = nll(stack, Variant("v", operations, {"r": region}))
    assert nll(stack) == before
    assert inside != before
    assert inside == nll(stack_of(tmp_path / "v", precision))


def test_sums_are_float64(make_model: ModelMaker, texts: dict[str, str]) -> None:
    """A model that knows nothing loses the same at every token, so that the sum is exact or it is not."""
    stack = stack_of(make_model("llama", seed=5))
    stack.loaded.weights.fill()
    with torch.no_grad():
        for parameter in stack.loaded.model.parameters():
            parameter.zero_()
    corpus = Corpus("c", {"de": FileLocation(Path(texts["de"]))})

    def found(tokens: int, window: int) -> Measure:
        spec = VerifySpec(tokens=tokens, window=window)
        return measure(stack, prepared(stack, corpus, spec), 4)

    each = found(2, 2).nll / 2
    assert each == pytest.approx(math.log(258), rel=1e-6)
    long = found(185, 61)  # 61 times the loss of a token has more digits than float32
    assert float(torch.tensor(61 * each, dtype=torch.float32)) != 61 * each
    assert long.nll == pytest.approx(185 * each, rel=1e-13)


def test_a_perplexity_beyond_float_range_is_inf_and_its_logarithm_stays() -> None:
    huge = Measure(nll=8000.0, tokens=10, bytes=10)
    assert huge.perplexity == math.inf
    assert huge.log_perplexity == 800.0
    assert geometric_mean({"a": huge, "b": Measure(0.0, 1, 1)}) == 400.0


def test_measuring_many_languages_keeps_their_order(llama: Path, texts: dict[str, str]) -> None:
    stack = stack_of(llama)
    corpus = Corpus("c", {language: FileLocation(Path(path)) for language, path in texts.items()})
    two = prepared(stack, corpus, VerifySpec(tokens=20, window=16), ("fr", "de"))
    assert list(measure_variants(stack, [Variant("base")], two, 2, Progress())["base"]) == ["fr", "de"]
