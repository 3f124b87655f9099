"""Layer by layer against the whole model: the same bits, whatever stays in memory and wherever a run was cut off."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import FAMILIES, ModelMaker, byte_tokenizer
from measured import measure_variants
from safetensors.torch import load_file, save_file

from surgeon.anatomy.scope import scope
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.measure.perplexity import evaluation_texts
from surgeon.model import budgets, hidden_states
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import Arguments, Stack, make_stack
from surgeon.model.model import load_model
from surgeon.operations import Zero
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region
from surgeon.scores.grad_param import GradParam
from surgeon.scores.score_pass import ScorePass
from surgeon.text.corpora import Corpus, FileLocation

IDS = [[(7 * row + 3 * i) % 250 + 2 for i in range(24)] for row in range(7)]
LANGUAGES = {"de": IDS[:4], "fr": IDS[4:]}


def stack_of(folder: Path, precision: str = "float32") -> Stack:
    return make_stack(load_model(Checkpoint.open(folder), precision))  # type: ignore[arg-type]


def whole_scores(folder: Path, reduction: str) -> dict[str, dict[str, torch.Tensor]]:
    """Scores in float32 by autograd on the whole model as transformers loads it; named as transformers saves them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    result = {}
    for language, rows in LANGUAGES.items():
        sums = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
        for start in range(0, len(rows), 2):
            ids = torch.tensor(rows[start : start + 2])
            model.zero_grad()
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum")
            (loss / (len(rows) * 23)).backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    change = parameter.grad * parameter.detach()
                    sums[name] += change.abs() if reduction == "absolute" else parameter.grad
        copy = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad(), tempfile.TemporaryDirectory() as saved:
            for name, parameter in copy.named_parameters():
                parameter.copy_(sums[name] if reduction == "absolute" else (parameter * sums[name]).abs())
            copy.save_pretrained(saved)
            result[language] = load_file(Path(saved) / "model.safetensors")
    return result


def our_scores(
    stack: Stack, reduction: str | None, include: tuple[str, ...] = ()
) -> dict[str, dict[str, torch.Tensor]]:
    tensors = scope(stack.loaded.checkpoint, include).tensors
    score = GradParam.model_validate(
        {"kind": "grad_param", "languages": ["de"], "sequence_length": 24, "batch_size": 2, "reduction": reduction}
    )
    sweep = ScorePass(stack, LANGUAGES, tensors, score, Progress())
    found: dict[str, dict[str, torch.Tensor]] = {language: {} for language in LANGUAGES}
    with sweep.scratch("test") as scratch:
        for _, language, scores in sweep.run(scratch, scratch.progress()):
            found[language] |= {name: torch.from_numpy(values.copy()) for name, values in scores.items()}
    return found


@pytest.mark.parametrize(("tied", "bos"), [(False, False), (True, True)])
@pytest.mark.parametrize("reduction", ["signed", "absolute"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_whole_model_bit_for_bit(
    family: str, reduction: str, tied: bool, bos: bool, make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 on a CPU, weights passing through layer by layer, hidden states in files."""
    monkeypatch.setattr(budgets, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(budgets, "HIDDEN_BYTES", 0)
    folder = make_model(family, bos=bos, tie_word_embeddings=tied)
    stack = stack_of(folder)
    assert len(stack.layers) == 2
    found, expected = our_scores(stack, reduction), whole_scores(folder, reduction)
    for language, name in itertools.product(LANGUAGES, found["de"]):
        assert torch.equal(found[language][name], expected[language][name]), name
    assert all(_is_hollow(parameter) for parameter in stack.loaded.model.parameters())


@pytest.mark.parametrize("wish", ["output_router_logits", "output_hidden_states", "output_attentions"])
def test_what_a_config_wants_beside_logits_is_not_computed(
    wish: str, make_model: ModelMaker, texts: dict[str, str]
) -> None:
    """Mixtures that were trained with a loss over their routers ask for the routers' logits."""
    folder = make_model("mixtral")
    stack = stack_of(folder)
    expected = measure_variants(stack, [Variant("base")], all_texts(stack, texts), 2, Progress())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, wish: True}))
    asked = stack_of(folder)
    assert len(asked.layers) == 2
    assert measure_variants(asked, [Variant("base")], all_texts(asked, texts), 2, Progress()) == expected
    assert our_scores(stack_of(folder), "signed")["de"]


def _is_hollow(parameter: torch.nn.Parameter) -> bool:
    return parameter.untyped_storage().nbytes() == parameter.element_size()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma3"])
def test_what_is_outside_the_layers_is_scored_too(family: str, make_model: ModelMaker) -> None:
    """Both the head's and the embedding's share of the gradient, tied or not; sums are added in another order."""
    for tied, reduction in ((False, "signed"), (True, "absolute")):
        folder = make_model(family, tie_word_embeddings=tied)
        found, expected = our_scores(stack_of(folder), reduction, ("*",)), whole_scores(folder, reduction)
        outside = [name for name in found["de"] if "layers" not in name and ".h." not in name]
        assert len(outside) >= 2
        for language, name in itertools.product(LANGUAGES, found["de"]):
            assert torch.allclose(found[language][name], expected[language][name], rtol=1e-5, atol=1e-8), name


def test_a_head_in_chunks_changes_the_last_bits_at_most(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = our_scores(stack_of(llama), "signed")
    monkeypatch.setattr(budgets, "LOGITS_BYTES", 4 * 258 * 10)
    monkeypatch.setattr(budgets, "FEWEST_TOKENS", 10)
    cut = our_scores(stack_of(llama), "signed")
    for language, name in itertools.product(LANGUAGES, whole["de"]):
        one, other = whole[language][name], cut[language][name]
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6 * float(one.max()))


def all_texts(stack: Stack, texts: dict[str, str]):  # type: ignore[no-untyped-def]
    corpus = Corpus("c", {language: FileLocation(Path(path)) for language, path in texts.items()})
    return evaluation_texts(stack.loaded.tokenizer, corpus, list(texts), VerifySpec(tokens=45, window=16, stride=12))


def some_variants(stack: Stack) -> list[Variant]:
    """The base, and one for each part of the model: both layers, the embedding, the last norm, the head."""
    regions = {}
    for info in scope(stack.loaded.checkpoint, ["*"]).tensors:
        flat = np.arange(0, info.numel, 3)
        regions[info.name] = Region.from_indices({info.name: flat}, {info.name: info.shape})
    return [Variant("base"), *(Variant(name, [Zero(zero=name)], regions) for name in regions)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_variant_measures_as_the_whole_model_with_its_edit(
    family: str, make_model: ModelMaker, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: each window's sum of losses of the base and of a cut in every single tensor, all in one sweep."""
    monkeypatch.setattr(budgets, "RESIDENT_BYTES", 0)
    folder = make_model(family, tie_word_embeddings=False)
    stack = stack_of(folder)
    prepared, variants = all_texts(stack, texts), some_variants(stack)
    if "experts.0" in " ".join(stack.loaded.parameters):
        variants = variants[:1] + variants[1::4]
    found = measure_variants(stack, variants, prepared, 3, Progress())
    loaded = load_model(Checkpoint.open(folder), "float32")
    loaded.weights.fill()
    for variant in variants:
        for name in variant.touched(loaded):
            loaded.parameters[name].values().view(-1)[::3] = 0
        for language, text in prepared.items():
            own = [nll for nll, _ in found[variant.name][language].pieces]
            assert own == pytest.approx(whole_nlls(loaded.model, text.windows), rel=1e-14)
        for name in variant.touched(loaded):
            loaded.parameters[name].values().copy_(torch.from_numpy(loaded.checkpoint.array(name).copy()))
    changed = [name for name, by_language in found.items() if by_language["de"].nll != found["base"]["de"].nll]
    assert len(changed) > len(variants) * 0.7  # the others are biases without effect, or unused positions


def whole_nlls(model: torch.nn.Module, windows) -> list[float]:  # type: ignore[no-untyped-def]
    """Losses of windows by the whole model, three of one length at a time, in their order."""
    result: list[float] = []
    while len(result) < len(windows):
        some = windows[len(result) : len(result) + 3]
        some = [window for window in some if len(window.inputs) == len(some[0].inputs)]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([window.inputs for window in some]), use_cache=False).logits
        for row, window in enumerate(some):
            losses = torch.nn.functional.cross_entropy(
                logits[row, -len(window.labels) :], torch.tensor(window.labels), reduction="none"
            )
            padded = torch.zeros(len(window.inputs), dtype=torch.float64)
            padded[-len(window.labels) :] = losses.double()
            result.append(float(padded.sum()))
    return result


def test_a_layer_is_run_for_a_variant_only_from_its_first_edit_on(llama: Path, texts: dict[str, str]) -> None:
    stack = stack_of(llama)
    prepared = all_texts(stack, texts)
    runs = [0, 0]
    for i, layer in enumerate(stack.layers):
        layer.mlp.register_forward_pre_hook(lambda module, args, i=i: runs.__setitem__(i, runs[i] + 1))
    measure_variants(stack, some_variants(stack)[:1], prepared, 3, Progress())
    base = runs[0]
    assert runs == [base, base]
    late = [v for v in some_variants(stack) if v.name.startswith("model.layers.1.")][:4]
    measure_variants(stack, [Variant("base"), *late], prepared, 3, Progress())
    assert runs == [2 * base, 2 * base + 4 * base]


def test_where_the_device_is_full_a_verification_takes_fewer_rows(
    llama: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = stack_of(llama)
    prepared, variants = all_texts(stack, texts), some_variants(stack)[:2]
    expected, said, real = measure_variants(stack, variants, prepared, 3, Progress()), [], Stack.layer

    def full(self: Stack, number: int, hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        if number == 1 and len(hidden) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, number, hidden, arguments)

    monkeypatch.setattr(Stack, "layer", full)
    monkeypatch.setattr(Progress, "note", lambda self, line: said.append(line))
    found = measure_variants(stack, variants, prepared, 3, Progress())
    assert said == ["out of memory on cpu: 1 of a batch's texts at a time"]
    for name, language in itertools.product(expected, prepared):
        one, other = (of[name][language].pieces for of in (found, expected))
        assert [tokens for _, tokens in one] == [tokens for _, tokens in other]
        np.testing.assert_allclose([nll for nll, _ in one], [nll for nll, _ in other], rtol=1e-5)


def test_float32_is_the_disk_s_whatever_the_config_says(make_model: ModelMaker, texts: dict[str, str]) -> None:
    """Float32 files beside a config of bfloat16 are not rounded, before an edit or after it."""
    folder = make_model("llama", seed=21)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    stored = load_file(folder / "model.safetensors")
    stack = stack_of(folder)
    stack.loaded.weights.fill()
    for name, tensor in stored.items():
        assert torch.equal(stack.loaded.parameters[name].values(), tensor)
    before = measure_variants(stack, [Variant("base")], all_texts(stack, texts), 3, Progress())
    measure_variants(stack, some_variants(stack), all_texts(stack, texts), 3, Progress())
    assert measure_variants(stack, [Variant("base")], all_texts(stack, texts), 3, Progress()) == before
    for name, tensor in stored.items():
        assert torch.equal(stack.loaded.parameters[name].values(), tensor)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_filled_is_what_transformers_loads(family: str, make_model: ModelMaker) -> None:
    """Fused experts included; in the weights' own dtype too."""
    folder = make_model(family, dtype="bfloat16", seed=5)
    for precision, dtype in (("float32", torch.float32), ("native", torch.bfloat16)):
        expected = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()
        loaded = load_model(Checkpoint.open(folder), precision)  # type: ignore[arg-type]
        loaded.weights.fill()
        found = loaded.model.state_dict()
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name


def test_copies_of_a_tied_weight_that_differ_are_two_parameters(make_model: ModelMaker) -> None:
    folder = make_model("llama", tie_word_embeddings=False, seed=31)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    loaded = load_model(Checkpoint.open(folder), "float32")
    assert loaded.model.lm_head.weight is not loaded.model.model.embed_tokens.weight
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder)
    loaded.weights.fill()
    assert torch.equal(loaded.model.lm_head.weight, expected.lm_head.weight)
    stored = load_file(folder / "model.safetensors")
    save_file(
        {**stored, "lm_head.weight": stored["model.embed_tokens.weight"].clone()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    loaded = load_model(Checkpoint.open(folder), "float32")
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight


def test_a_missing_or_reshaped_tensor_is_named(make_model: ModelMaker) -> None:
    from surgeon.errors import CheckpointError

    folder = make_model("llama", seed=32)
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**stored, name: torch.zeros(3, 3)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"'{name}' is of another shape, \[3, 3\] instead of \[48, 32\]"):
        load_model(Checkpoint.open(folder), "float32")
    del stored[name]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"'{name}' is missing \(1 in all\)"):
        load_model(Checkpoint.open(folder), "float32")


def test_a_model_that_is_no_plain_stack_is_run_as_a_whole(tmp_path: Path, texts: dict[str, str]) -> None:
    """Zamba's layers share a block, so that no layer's gradient is its own."""
    torch.manual_seed(0)
    config = transformers.Zamba2Config(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, mamba_d_state=8, mamba_headdim=16, mamba_ngroups=1, n_mamba_heads=4, num_mem_blocks=1,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], use_mem_rope=True, adapter_rank=4,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    stack = stack_of(tmp_path)
    assert stack.layers == ()
    found, expected = our_scores(stack, "signed"), whole_scores(tmp_path, "signed")
    for language, name in itertools.product(LANGUAGES, found["de"]):
        assert torch.allclose(found[language][name], expected[language][name], rtol=1e-5, atol=1e-9), name
    prepared = all_texts(stack, texts)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    measured = measure_variants(stack, [Variant("base")], prepared, 3, Progress())["base"]
    for language, text in prepared.items():
        np.testing.assert_allclose(
            [nll for nll, _ in measured[language].pieces], whole_nlls(reference, text.windows), rtol=1e-6
        )


def test_states_in_files_are_those_in_memory(tmp_path: Path) -> None:
    shapes = [(2, 3), (1, 5)]
    for dtype in (torch.float32, torch.bfloat16):
        memory, files = (hidden_states.States(shapes, dtype, folder) for folder in (None, tmp_path))
        for row, batch in itertools.product(range(3), range(2)):
            value = torch.randn(shapes[batch]).to(dtype)
            for kept in (memory, files):
                kept.put(row, batch, value)
        again = hidden_states.States(shapes, dtype, tmp_path)
        for row, batch in itertools.product(range(3), range(2)):
            assert torch.equal(memory.get(row, batch), files.get(row, batch))
            assert torch.equal(memory.get(row, batch), again.get(row, batch))
        files.get(0, 0).zero_()  # a copy: what is kept stays
        assert torch.equal(memory.get(0, 0), files.get(0, 0))
        files.put(0, 1, value + 1)  # which was read ahead with the one before it
        assert torch.equal(files.get(0, 1), value + 1)
        files.drop(1)
        assert not (tmp_path / "hidden-00001.bin").exists()
