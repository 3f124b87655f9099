"""A model in memory: a region is cut out for a while, and everything is back afterwards, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import surgeon
from surgeon.anatomy.scope import scope
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import InputError, RegionError
from surgeon.operations import Zero
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region
from surgeon.text.corpora import Corpus, FileLocation

Maker = Callable[..., Path]


def load(folder: Path):  # type: ignore[no-untyped-def]
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def some_of(folder: Path, seed: int = 0, share: float = 0.1) -> Region:
    """A region at random, of all that lies in the decoder's layers."""
    generator = np.random.default_rng(seed)
    return Region.from_masks(
        {info.name: generator.random(info.shape) < share for info in scope(Checkpoint.open(folder)).tensors}
    )


def bits(model: torch.nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"dtype": "bfloat16"}),
        ("gpt2", {}),  # matrices stored the other way round, and without the prefix that the model has
        ("gemma3", {"dtype": "bfloat16", "tie_word_embeddings": True}),
        ("mixtral", {}),  # experts lie apart on disk, and fused in the model
    ],
)
def test_a_cut_model_is_the_variant_on_disk_and_afterwards_the_source(
    family: str, settings: dict[str, object], make_model: Maker, tmp_path: Path
) -> None:
    folder = make_model(family, **settings)
    region = some_of(folder)
    surgeon.write_variant(Checkpoint.open(folder), [Zero(zero="some")], {"some": region}, str(tmp_path / "cut"))
    model, variant = load(folder), load(tmp_path / "cut")
    before = bits(model)
    assert before != bits(variant)
    with surgeon.cut(model, region) as given:
        assert given is model
        assert bits(model) == bits(variant)
    assert bits(model) == before


def test_strange_bits_come_back_and_an_exception_does_not_keep_them(llama: Path) -> None:
    """Payloads of not-a-numbers, infinities and negative zeros."""
    model, region = load(llama), some_of(llama, share=0.5)
    weight = model.model.layers[0].mlp.up_proj.weight
    strange = torch.tensor([0x7FC12345, -0x3FFFFF, 0x7F800000, -0x80000000, 0x1], dtype=torch.int32)
    with torch.no_grad():
        weight.view(torch.int32).view(-1)[: 5 * 40] = strange.repeat(40)
    before = bits(model)
    chosen, cut_out = torch.from_numpy(region.mask("model.layers.0.mlp.up_proj.weight")), []

    def fail_inside() -> None:
        with surgeon.cut(model, region):
            cut_out.append(bool((weight[chosen] == 0).all()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert cut_out == [True]
    assert bits(model) == before


def test_cuts_nest_overlap_and_end_in_any_order(llama: Path) -> None:
    model = load(llama)
    one, two, three = (some_of(llama, seed, 0.3) for seed in range(3))
    alone = {}
    for name, region in {"one": one, "two": two, "one and three": one | three, "all": one | two | three}.items():
        with surgeon.cut(model, region):
            alone[name] = bits(model)
    before = bits(model)
    first, second, third = ExitStack(), ExitStack(), ExitStack()
    first.enter_context(surgeon.cut(model.model, one))  # the same parameters by another way
    assert bits(model) == alone["one"]
    second.enter_context(surgeon.cut(model, two))
    third.enter_context(surgeon.cut(model, three))
    assert bits(model) == alone["all"]
    second.close()
    assert bits(model) == alone["one and three"]
    first.close()
    third.close()
    assert bits(model) == before


def test_a_tied_weight_named_twice_is_one_weight(make_model: Maker) -> None:
    model = load(make_model("llama", tie_word_embeddings=True))
    shape = tuple(model.lm_head.weight.shape)
    left, right = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    left[:4], right[2:8] = True, True
    before = bits(model)
    with surgeon.cut(model, Region.from_masks({"model.embed_tokens.weight": left, "lm_head.weight": right})):
        weight = model.model.embed_tokens.weight
        assert weight is model.lm_head.weight
        assert bool((weight[:8] == 0).all())
        assert bool((weight[8:] != 0).any(dim=1).all())
    assert bits(model) == before


def test_what_is_trained_meanwhile_stays_and_the_region_comes_back(llama: Path) -> None:
    model, region = load(llama), some_of(llama)
    name = "model.layers.1.self_attn.q_proj.weight"
    weight, chosen = model.get_parameter(name), torch.from_numpy(region.mask(name))
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with surgeon.cut(model, region):
        model(input_ids=torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
        optimizer.step()
    assert torch.equal(weight[chosen], before[chosen])
    assert not torch.equal(weight[~chosen], before[~chosen])


def test_strides_do_not_matter_and_a_wrapper_is_looked_through(llama: Path) -> None:
    model, region = load(llama), some_of(llama)
    weight = model.model.layers[0].mlp.down_proj.weight
    expected = weight.detach().clone()
    expected[torch.from_numpy(region.mask("model.layers.0.mlp.down_proj.weight"))] = 0
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    with surgeon.cut(torch.nn.DataParallel(model), region):
        assert torch.equal(weight, expected)
    with surgeon.cut(model.model, region):  # the same without its head
        assert torch.equal(weight, expected)
    with pytest.raises(InputError, match="no language modelling head"):
        surgeon.perplexity(model.model, transformers.AutoTokenizer.from_pretrained(llama), tokens=8)
    with pytest.raises(InputError, match="wraps none"), surgeon.cut(torch.nn.Linear(1, 1), region):
        pass
    with pytest.raises(InputError, match="wraps several"), surgeon.cut(torch.nn.Sequential(model, load(llama)), region):
        pass


def test_what_cannot_be_cut_is_refused_before_anything_changes(llama: Path, make_model: Maker) -> None:
    model = load(llama)
    before = bits(model)
    with pytest.raises(RegionError, match="region of another model"), surgeon.cut(model, some_of(make_model("gpt2"))):
        pass
    with pytest.raises(RegionError, match="no such file"), surgeon.cut(model, "nowhere.region.safetensors"):
        pass
    assert bits(model) == before
    with torch.device("meta"):
        hollow = transformers.AutoModelForCausalLM.from_config(model.config)
    with pytest.raises(InputError, match="offloaded"), surgeon.cut(hollow, some_of(llama)):
        pass


def test_a_parameter_that_was_replaced_meanwhile_is_told(llama: Path) -> None:
    model, region = load(llama), some_of(llama)
    with pytest.raises(InputError, match="replaced by others"), surgeon.cut(model, region):
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)


def test_perplexity_is_that_of_verify(llama: Path, texts: dict[str, str]) -> None:
    """By the same windows, but through the model's own forward and not layer by layer."""
    model, tokenizer = load(llama), transformers.AutoTokenizer.from_pretrained(llama)
    corpus = Corpus("texts", {language: FileLocation(Path(path)) for language, path in texts.items()})
    spec = VerifySpec(tokens=100, window=32, stride=16)
    expected = surgeon.verify_checkpoint(llama, corpus=corpus, spec=spec).measures["checkpoint"]
    model.train()
    found = surgeon.perplexity(model, tokenizer, corpus=texts, tokens=100, window=32, stride=16)
    assert model.training
    assert list(found) == ["de", "fr"]
    for language, measure in found.items():
        assert measure.tokens == expected[language].tokens
        assert measure.bits_per_byte == pytest.approx(expected[language].bits_per_byte, rel=1e-5)
    only = surgeon.perplexity(model, tokenizer, corpus=corpus, languages=["fr"], tokens=100, window=32, stride=16)
    assert only == {"fr": found["fr"]}
    with surgeon.cut(model, some_of(llama, share=0.5)):
        cut = surgeon.perplexity(model, tokenizer, corpus=texts, tokens=100, window=32, stride=16)
    assert abs(cut["de"].log_perplexity - found["de"].log_perplexity) > 0.01


def test_documents_at_hand_are_measured_whole(llama: Path, texts: dict[str, str], tmp_path: Path) -> None:
    model, tokenizer = load(llama), transformers.AutoTokenizer.from_pretrained(llama)
    documents = ["Alle Menschen sind frei.", "", "Und gleich."]
    text = "Alle Menschen sind frei.\nUnd gleich.\n"
    few: dict[str, Any] = {"tokens": 200, "window": 64}
    corpus: dict[str, Any] = {"list": documents, "lines": text, "file": texts["de"], "spec": {"file": texts["fr"]}}
    found = surgeon.perplexity(model, tokenizer, corpus=corpus, **few)
    assert set(found) == set(corpus)
    assert found["list"] == found["lines"]
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        expected = float(model(ids, labels=ids).loss)  # as the model itself has it
    assert found["list"].tokens == ids.shape[1] - 1
    assert found["list"].bytes == len(text.encode()) - 1  # the first token, one byte, is not predicted
    assert found["list"].log_perplexity == pytest.approx(expected, rel=1e-5)
    assert found["file"] == surgeon.perplexity(model, tokenizer, corpus=texts, languages="de", **few)["de"]


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"de": ["", " "]}, "the documents given for 'de' hold no text"),
        ({"de": ["a", 7]}, "the documents given for 'de' are not all text"),
        ({"de": {"field": "x"}}, "corpus, 'de': give either file or dataset"),
        ({"de": "no/such.txt"}, "no such text file"),
    ],
)
def test_what_is_no_text_is_told(corpus: Any, message: str, llama: Path) -> None:
    with pytest.raises(InputError, match=message):
        surgeon.perplexity(load(llama), transformers.AutoTokenizer.from_pretrained(llama), corpus=corpus)


def test_a_window_beyond_the_positions_is_refused(make_model: Maker, texts: dict[str, str]) -> None:
    folder = make_model("gpt2")  # 64 positions
    with pytest.raises(InputError, match="more than the 64 positions"):
        surgeon.perplexity(load(folder), transformers.AutoTokenizer.from_pretrained(folder), corpus=texts)
