"""The whole product on quantized checkpoints: every byte that an edit does not touch stays, and figures are those of
the dequantized model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ModelMaker
from quantizing import BLOCK, fp8, stored, written

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import present
from surgeon.plan.planning import open_corpus
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region
from surgeon.views.inspection import look_at

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def plain(make_model: ModelMaker) -> Path:
    return make_model("qwen3", dtype="bfloat16")


@pytest.fixture(scope="module")
def quantized(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fp8(plain, tmp_path_factory.mktemp("fp8") / "model")


def dequantized(folder: Path):  # type: ignore[no-untyped-def]
    """Load a checkpoint as transformers does without a GPU: dequantized."""
    import transformers

    how = transformers.FineGrainedFP8Config(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.bfloat16)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


RECIPE = """\
version: 1
name: quantized
model: {model}
corpus: {{de: {de}, fr: {fr}}}
regions:
  core: {{score: {{kind: grad_param, languages: [de], samples: 4, sequence_length: 16}}, select: {{top: 0.01}}}}
  drawn: {{select: {{random: 0.02, seed: 3}}}}
variants:
  cut: {{operations: [{{zero: core}}]}}
  louder: {{operations: [{{scale: drawn, by: 3.0}}]}}
  small: {{operations: [{{zero: core}}], write: patch}}
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


def test_zeroing_changes_those_codes_and_no_other_byte(quantized: Path, run: Path) -> None:
    region = Region.load(run / "regions" / "core.region.safetensors")
    before, after = files(quantized), files(run / "variants" / "cut")
    assert {name for name in after if name not in before} == {"README.md", "surgeon.json"}
    for name, content in before.items():
        if not name.endswith(".safetensors"):
            assert after[name] == content, name
    source = Checkpoint.open(quantized)
    touched = 0
    for header in source.headers:
        old, new = (np.frombuffer(side[header.path.name], np.uint8) for side in (before, after))
        differ = np.flatnonzero(old != new)
        allowed = []
        for name in region:
            codes = source.tensors[name].codes if hasattr(source.tensors[name], "codes") else source.tensors[name]
            if codes.path == header.path:
                width = codes.nbytes // codes.numel
                allowed.append((codes.offset + region.indices(name)[:, None] * width + np.arange(width)).reshape(-1))
        at = np.concatenate(allowed)
        assert np.isin(differ, at).all()
        assert not new[at].any() | (new[at] == 0x80).any()
        touched += differ.size
    assert touched


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
    for name in ("cut", "louder"):
        again = surgeon.verify_checkpoint(
            run / "variants" / name,
            corpus=open_corpus(texts),
            spec=VerifySpec(tokens=64, window=32),
        )
        for language in texts:
            measured = next(iter(again.measures.values()))[language].nll
            assert measured == pytest.approx(report["perplexity"][name][language]["nll"], rel=1e-6)


def test_scaled_entries_are_encoded_and_the_report_says_how(quantized: Path, run: Path) -> None:
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
        wanted = before.copy()
        wanted.reshape(-1)[region.indices(name)] *= 3.0
        if f"{name}_scale_inv" not in old:
            continue
        errors.append(((after - wanted) ** 2).sum())
        scales = old[f"{name}_scale_inv"]
        moved = (scales != new[f"{name}_scale_inv"]).double()
        rescaled += int(moved.sum())
        inside = torch.from_numpy(np.isin(np.arange(before.size), region.indices(name)).reshape(before.shape)).double()
        blocks += int(torch.nn.functional.max_pool2d(inside[None], BLOCK, ceil_mode=True).sum())
        spread = moved.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: before.shape[0], : before.shape[1]]
        untouched = (inside == 0) & (spread == 0)
        assert torch.equal(old[name].view(torch.uint8)[untouched], new[name].view(torch.uint8)[untouched])
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


def test_inspect_and_plan_tell_the_format(plain: Path, quantized: Path, run: Path) -> None:
    found, known = look_at(str(quantized)), look_at(str(plain))
    for key in ("parameters", "tensors", "hidden_size", "layers", "roles", "reach", "dtypes"):
        assert found[key] == known[key], key
    assert found["quantization"] == "fp8-block: FP8 (E4M3), a scale per block of 16 x 16"
    assert found["stored_dtypes"] == {"BF16": 11, "F8_E4M3": 14, "F32": 14}
    names = [name for name in stored(quantized) if name.endswith("_scale_inv")]
    assert found["coded"]["blocks"] == sum(stored(quantized)[name].numel() for name in names)
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


def test_diff_compares_values_and_counts_codes(plain: Path, quantized: Path, run: Path, tmp_path: Path) -> None:
    from surgeon.diff.comparison import compare

    source, variant = quantized, run / "variants" / "louder"
    found = present(compare(source, variant).checkpoints)
    old, new = stored(source), stored(variant)
    for tensor in found.tensors:
        before, after = (Checkpoint.open(side).array(tensor.name).astype(np.float64) for side in (source, variant))
        assert tensor.change.changed == np.count_nonzero(before != after)
        assert tensor.change.l2 == pytest.approx(np.linalg.norm(before - after))
        scales = f"{tensor.name}_scale_inv"
        codes = int((old[tensor.name].view(torch.uint8) != new[tensor.name].view(torch.uint8)).sum())
        if scales in old and tensor.kind == "changed":
            assert tensor.stored == (codes, int((old[scales] != new[scales]).sum()))
    twin = compare(plain, quantized)
    by_value = {tensor.name: tensor for tensor in present(twin.checkpoints).tensors}
    assert by_value.keys() == Checkpoint.open(plain).tensors.keys()
    assert by_value[NAME].kind == "changed"
    assert 0 < present(by_value[NAME].change.relative) < 0.05
    assert any("their values are compared" in line for line in twin.remarks)
    # other codes, the same values: no value differs, and the checkpoints are not identical
    tensors = stored(source)
    tensors[NAME] = (tensors[NAME].float() / 2).to(torch.float8_e4m3fn)
    tensors[f"{NAME}_scale_inv"] = tensors[f"{NAME}_scale_inv"] * 2
    settings = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    again = present(compare(source, written(plain, tmp_path / "halved", tensors, settings)).checkpoints)
    halved = {tensor.name: tensor for tensor in again.tensors}[NAME]
    assert halved.stored is not None
    assert halved.stored[1] == tensors[f"{NAME}_scale_inv"].numel()
    assert not again.identical
    assert halved.change.changed < halved.stored[0] / 4  # but for those next to nothing, which the halves cannot hold
