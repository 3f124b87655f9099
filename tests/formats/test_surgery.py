"""The whole product on quantized checkpoints: every byte that an edit does not touch stays, and figures are those of
the dequantized model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ModelMaker
from quantizing import BLOCK, dequantized, fp8, mxfp4, stored, tiny_gpt_oss, written

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.diff.comparison import compare
from surgeon.errors import RecipeError, present
from surgeon.recipe.corpus import open_corpus
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region
from surgeon.views.inspection import look_at

NAMES = {"fp8": "model.layers.1.mlp.down_proj.weight", "mxfp4": "model.layers.1.mlp.experts.down_proj"}
WORDS = {
    "fp8": "fp8-block: FP8 (E4M3), a scale per block of 16 x 16",
    "mxfp4": "mxfp4: MXFP4 (E2M1), a power of two per 32 codes",
}
ENDINGS = {"fp8": ("", "_scale_inv"), "mxfp4": ("_blocks", "_scales")}


@pytest.fixture(scope="module", params=["fp8", "mxfp4"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain(kind: str, make_model: ModelMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if kind == "fp8":
        return make_model("qwen3", dtype="bfloat16")
    return tiny_gpt_oss(tmp_path_factory.mktemp("gpt_oss") / "model")


@pytest.fixture(scope="module")
def quantized(kind: str, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return {"fp8": fp8, "mxfp4": mxfp4}[kind](plain, tmp_path_factory.mktemp(kind) / "model")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def laid_out(kind: str, tensors: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes, scales and numbers of blocks of a logical tensor, one for each entry, where the entry is."""
    codes, scales = (tensors[name + ending] for ending in ENDINGS[kind])
    blocks = torch.arange(scales.numel()).reshape(scales.shape)
    if kind == "fp8":
        rows, columns = codes.shape
        spread = [
            t.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns] for t in (scales, blocks)
        ]
        return codes.view(torch.uint8), spread[0], spread[1]
    halves = torch.stack([codes & 15, codes >> 4], -1).flatten(2).transpose(1, 2)
    return halves, *(t.repeat_interleave(32, 2).transpose(1, 2) for t in (scales, blocks))


RECIPE = """\
version: 1
name: quantized
model: {model}
corpus: {{de: {de}, fr: {fr}}}
regions:
  core: {{score: {{kind: grad_param, languages: [de], samples: 4, sequence_length: 16}}, select: {{top: 0.01}}}}
  drawn: {{select: {{random: 0.02, seed: 3}}}}
variants:
  cut: {{operations: [{{zero: core}}], freeze: core}}
  louder: {{operations: [{{scale: drawn, by: 3.0}}]}}
  small: {{operations: [{{zero: core}}], write: patch}}
  wide: {{operations: [{{zero: core}}, {{scale: drawn, by: 3.0}}], write: {{dtype: bfloat16}}}}
verify: {{languages: all, tokens: 64, window: 32}}
output: {out}
"""


@pytest.fixture(scope="module")
def run(quantized: Path, texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=quantized, out=folder / "out", **texts))
    surgeon.apply(recipe)
    return folder / "out"


def test_zeroing_changes_those_codes_and_no_other_byte(kind: str, quantized: Path, run: Path) -> None:
    region = Region.load(run / "regions" / "core.region.safetensors")
    before, after = files(quantized), files(run / "variants" / "cut")
    assert {name for name in after if name not in before} == {"README.md", "surgeon.json"}
    for name, content in before.items():
        if not name.endswith(".safetensors"):
            assert after[name] == content, name
        start = 8 + int.from_bytes(content[:8], "little")
        assert not name.endswith(".safetensors") or after[name][:start] == content[:start]
    old, new = stored(quantized), stored(run / "variants" / "cut")
    held = set(old)
    for name in region:
        chosen = torch.zeros(region.shapes[name], dtype=torch.bool)
        chosen.view(-1)[torch.from_numpy(region.indices(name))] = True
        if name + ENDINGS[kind][1] in old:
            codes, scales, _ = laid_out(kind, old, name)
            now, stay, _ = laid_out(kind, new, name)
            assert torch.equal(scales.view(torch.uint8), stay.view(torch.uint8))
            negative = 0x80 if kind == "fp8" else 0x08
            assert torch.equal(now, torch.where(chosen & (codes != negative), 0, codes))
            held -= {name + ending for ending in ENDINGS[kind]}
        else:
            assert torch.equal(new[name], torch.where(chosen, 0, old[name]))
            held.discard(name)
    assert all(torch.equal(old[name].view(torch.uint8), new[name].view(torch.uint8)) for name in held)
    assert any(name + ENDINGS[kind][1] in old for name in region)


def test_the_variant_computes_as_the_dequantized_model_with_zeros(quantized: Path, run: Path) -> None:
    region = Region.load(run / "regions" / "core.region.safetensors")
    ids = torch.arange(2, 34)[None]
    model = dequantized(quantized)
    with torch.no_grad(), surgeon.cut(model, region):
        expected = model(ids).logits
    with torch.no_grad():
        assert torch.equal(dequantized(run / "variants" / "cut")(ids).logits, expected)


def test_measured_in_memory_is_measured_from_disk(run: Path, texts: dict[str, str]) -> None:
    """Also of the variant whose new values were encoded: what was measured is what was written."""
    report = json.loads((run / "report.json").read_text())
    for name in ("cut", "louder", "wide"):
        again = surgeon.verify_checkpoint(
            run / "variants" / name,
            corpus=open_corpus(texts),
            spec=VerifySpec(tokens=64, window=32),
        )
        for language in texts:
            measured = next(iter(again.measures.values()))[language].nll
            assert measured == pytest.approx(report["perplexity"][name][language]["nll"], rel=1e-6)


def test_scaled_entries_are_encoded_and_the_report_says_how(kind: str, quantized: Path, run: Path) -> None:
    region = Region.load(run / "regions" / "drawn.region.safetensors")
    source, variant = Checkpoint.open(quantized), Checkpoint.open(run / "variants" / "louder")
    assert (run / "variants" / "louder" / "config.json").read_bytes() == (quantized / "config.json").read_bytes()
    errors, blocks, rescaled = [], 0, 0
    old, new = stored(quantized), stored(run / "variants" / "louder")
    for name in source.tensors:
        if name not in region:
            assert torch.equal(source.tensor(name), variant.tensor(name))
            continue
        before, after = (side.array(name).astype(np.float64) for side in (source, variant))
        chosen = torch.zeros(before.shape, dtype=torch.bool)
        chosen.view(-1)[torch.from_numpy(region.indices(name))] = True
        if name + ENDINGS[kind][1] not in old:
            continue
        errors.append(((after - np.where(chosen, before * 3.0, before)) ** 2).sum())
        codes, scales, number = laid_out(kind, old, name)
        now, others, _ = laid_out(kind, new, name)
        moved = scales != others
        rescaled += number[moved].unique().numel()
        blocks += number[chosen].unique().numel()
        assert torch.equal(codes[~chosen & ~moved], now[~chosen & ~moved])
        assert not set(number[moved].tolist()) - set(number[chosen].tolist())
    said = json.loads((run / "report.json").read_text())["variants"]["louder"]["encoding"]
    assert said["rescaled"] == rescaled
    assert rescaled
    assert rescaled <= said["blocks"] <= blocks
    assert said["norm"] == pytest.approx(np.sqrt(sum(errors)), rel=1e-6)
    assert json.loads((run / "report.json").read_text())["variants"]["cut"]["encoding"]["rounded"] == 0


def test_a_patch_replays_on_the_quantized_and_on_the_dequantized_model(
    plain: Path, quantized: Path, run: Path, tmp_path: Path
) -> None:
    patch = run / "variants" / "small.patch.safetensors"
    twin = tmp_path / "twin"
    dequantized(quantized).save_pretrained(twin, save_original_format=False)
    for source, said in ((quantized, "cut"), (twin, None)):
        recipe = tmp_path / f"{source.name}.yaml"
        recipe.write_text(f"""\
version: 1
name: replay
model: {source}
regions: {{all: {{file: {patch}}}}}
variants: {{again: {{operations: [{{restore: all, from: {patch}}}]}}}}
output: {tmp_path / f"out-{source.name}"}
""")
        surgeon.apply(recipe)
        made = tmp_path / f"out-{source.name}" / "variants" / "again"
        if said is not None:
            for name, content in files(run / "variants" / said).items():
                if name.endswith(".safetensors"):
                    assert (made / name).read_bytes() == content
        left, right = Checkpoint.open(made), Checkpoint.open(run / "variants" / "cut")
        for name in right.tensors:
            assert torch.equal(left.tensor(name), right.tensor(name))


def test_inspect_tells_the_format(kind: str, plain: Path, quantized: Path, run: Path) -> None:
    found, known = look_at(str(quantized)), look_at(str(plain))
    for key in ("parameters", "tensors", "hidden_size", "layers", "roles", "reach", "dtypes"):
        assert found[key] == known[key], key
    assert found["quantization"] == WORDS[kind]
    scales = [tensor for name, tensor in stored(quantized).items() if name.endswith(ENDINGS[kind][1])]
    assert found["coded"]["tensors"] == len(scales)
    assert found["coded"]["blocks"] == sum(tensor.numel() for tensor in scales)
    assert json.loads((run / "report.json").read_text())["model"]["parameters"] == known["parameters"]


def test_a_region_of_the_plain_model_fits_the_quantized_one(
    plain: Path, quantized: Path, run: Path, tmp_path: Path
) -> None:
    region = run / "regions" / "core.region.safetensors"
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"""\
version: 1
name: other
model: {plain}
regions: {{core: {{file: {region}}}}}
variants: {{cut: {{operations: [{{zero: core}}]}}}}
output: {tmp_path / "out"}
""")
    surgeon.apply(recipe)
    made = Checkpoint.open(tmp_path / "out" / "variants" / "cut")
    for name in Region.load(region):
        assert not made.array(name).reshape(-1)[Region.load(region).indices(name)].any()


def test_diff_compares_values_and_counts_codes(
    kind: str, plain: Path, quantized: Path, run: Path, tmp_path: Path
) -> None:
    found = present(compare(quantized, run / "variants" / "louder").checkpoints)
    old, new = stored(quantized), stored(run / "variants" / "louder")
    for tensor in found.tensors:
        sides = [Checkpoint.open(side).array(tensor.name) for side in (quantized, run / "variants" / "louder")]
        before, after = (side.astype(np.float64) for side in sides)
        assert tensor.change.changed == np.count_nonzero(sides[0].view(np.int16) != sides[1].view(np.int16))
        assert tensor.change.l2 == pytest.approx(np.linalg.norm(before - after))
        if tensor.name + ENDINGS[kind][1] in old and tensor.kind == "changed":
            scales = tensor.name + ENDINGS[kind][1]
            codes = laid_out(kind, old, tensor.name)[0] != laid_out(kind, new, tensor.name)[0]
            assert tensor.stored == (int(codes.sum()), int((old[scales] != new[scales]).sum()))
    twin = compare(plain, quantized)
    by_value = {tensor.name: tensor for tensor in present(twin.checkpoints).tensors}
    assert by_value.keys() == Checkpoint.open(plain).tensors.keys()
    assert by_value[NAMES[kind]].kind == "changed"
    assert 0 < present(by_value[NAMES[kind]].change.relative) < 0.2
    assert any("their values are compared" in line for line in twin.remarks)
    if kind == "fp8":  # other codes, the same values but for those next to nothing: not identical
        tensors, name = stored(quantized), NAMES[kind]
        tensors[name] = (tensors[name].float() / 2).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = tensors[f"{name}_scale_inv"] * 2
        settings = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
        again = present(compare(quantized, written(plain, tmp_path / "halved", tensors, settings)).checkpoints)
        halved = present({tensor.name: tensor for tensor in again.tensors}[name])
        assert present(halved.stored)[1] == tensors[f"{name}_scale_inv"].numel()
        assert not again.identical
        assert halved.change.changed < present(halved.stored)[0] / 4


def test_a_dequantized_variant_is_a_plain_checkpoint(plain: Path, quantized: Path, run: Path) -> None:
    """Its entries are those of transformers' dequantized model, edited in bfloat16; transformers loads it plainly."""
    import transformers

    made = run / "variants" / "wide"
    core, drawn = (Region.load(run / "regions" / f"{name}.region.safetensors") for name in ("core", "drawn"))
    state = dequantized(quantized).state_dict()
    tensors = stored(made)
    assert tensors.keys() == stored(plain).keys()
    for name, tensor in tensors.items():
        expected = state[name].clone().reshape(-1)
        if name in core:
            at = torch.from_numpy(core.indices(name))
            expected[at] = torch.where(expected[at] == 0, expected[at], 0)
        if name in drawn:
            at = torch.from_numpy(drawn.indices(name))
            expected[at] = (expected[at].double() * 3.0).to(torch.bfloat16)
        assert torch.equal(tensor.reshape(-1).view(torch.int16), expected.view(torch.int16)), name
    config = json.loads((made / "config.json").read_text())
    source = json.loads((quantized / "config.json").read_text())
    assert config == {key: value for key, value in source.items() if key != "quantization_config"}
    index = json.loads((made / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    model, info = transformers.AutoModelForCausalLM.from_pretrained(made, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    assert look_at(str(made))["quantization"] is None
    card, kept = ((run / "variants" / name / "README.md").read_text(encoding="utf-8") for name in ("wide", "cut"))
    assert "All other weights are those of the source, decoded to bfloat16." in card
    assert "All bytes of the weights" in kept
    assert "All bytes of the weights" not in card
    surgeon.apply(run.parent / "recipe.yaml")  # all of it is found as it was written
    report = json.loads((run / "report.json").read_text())
    assert report["variants"]["wide"]["reused"]
    assert report["variants"]["louder"]["reused"]


def test_ways_to_write_that_do_not_fit_are_told(plain: Path, quantized: Path, tmp_path: Path) -> None:
    for model, dtype, said in ((plain, "bfloat16", "say `write: true`"), (quantized, "float16", "{dtype: bfloat16}")):
        recipe = tmp_path / "r.yaml"
        recipe.write_text(f"""\
version: 1
name: other
model: {model}
regions: {{a: {{select: {{random: 0.1}}}}}}
variants: {{cut: {{operations: [{{zero: a}}], write: {{dtype: {dtype}}}}}}}
output: {tmp_path / "out"}
""")
        with pytest.raises(RecipeError, match=re.escape(said)):
            surgeon.apply(recipe)
    recipe.write_text(recipe.read_text().replace("{dtype: float16}", "native"))
    surgeon.apply(recipe)
    assert (tmp_path / "out" / "variants" / "cut" / "config.json").read_bytes() == (
        quantized / "config.json"
    ).read_bytes()


def test_a_freeze_bundle_holds_for_the_dequantized_model(run: Path, tmp_path: Path) -> None:
    """Trainers hold the decoded weights: the region stays while the rest trains, and so it does in what is saved."""
    from surgeon.freeze import Bundle, freeze, verify_saved

    folder = run / "variants" / "cut"
    model = dequantized(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    freeze(model, folder, optimizer)
    ids = torch.arange(2, 34)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    region = Bundle.load(folder).region
    after = model.state_dict()
    for name in region:
        at = torch.from_numpy(region.indices(name))
        assert torch.equal(after[name].reshape(-1)[at], before[name].reshape(-1)[at])
    assert any(not torch.equal(after[name], before[name]) for name in region)
    model.save_pretrained(tmp_path / "trained", save_original_format=False)
    verify_saved(tmp_path / "trained", folder)
