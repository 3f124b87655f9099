"""The whole product on formats by their definitions: regions and patches of the plain model fit, and the other way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ModelMaker
from definitions import DEFINITIONS
from quantizing import BLOCK, fp8, plain_copy, stored, written
from safetensors.torch import load_file

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.cli import main
from surgeon.diff.comparison import compare
from surgeon.errors import FreezeError, present
from surgeon.formats.fp8_block import _NUMBERS as E4M3
from surgeon.freeze import Bundle, freeze, verify_saved
from surgeon.region.region import Region
from surgeon.views.inspection import look_at

MODULE = "model.layers.1.self_attn.k_proj"
NAME = f"{MODULE}.weight"
RECIPE = """\
version: 1
name: product
model: {model}
regions: {{drawn: {region}}}
variants: {variants}
output: {out}
"""
VARIANTS = """
  cut: {operations: [{zero: drawn}], freeze: drawn}
  small: {operations: [{zero: drawn}], write: patch}
  softer: {operations: [{scale: drawn, by: 0.5}]}
"""


@pytest.fixture(scope="module")
def plain(make_model: ModelMaker) -> Path:
    return make_model("llama", dtype="bfloat16")


def apply(folder: Path, model: Path, region: str, variants: str) -> Path:
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model, region=region, variants=variants, out=folder / "out"))
    surgeon.apply(recipe)
    return folder / "out"


@pytest.mark.parametrize("kind", ["nvfp4", "gptq-act-order", "nf4"])
def test_what_is_made_of_one_fits_the_other(kind: str, plain: Path, tmp_path: Path) -> None:
    definition, tensors = DEFINITIONS[kind], load_file(plain / "model.safetensors")
    made = {f"{MODULE}.{end}": tensor for end, tensor in definition.encode(tensors.pop(NAME)).items()}
    quantized = written(plain, tmp_path / "model", {**tensors, **made}, definition.settings)
    drawn = apply(
        tmp_path / "plain", plain, "{select: {random: 0.02, seed: 1}}", "{cut: {operations: [{zero: drawn}]}}"
    )
    file = drawn / "regions" / "drawn.region.safetensors"
    region = Region.load(file)
    assert region.indices(NAME).size
    out = apply(tmp_path / "run", quantized, f"{{file: {file}}}", VARIANTS)

    old, new = stored(quantized), stored(out / "variants" / "cut")
    held = [name for name in old if name.startswith(MODULE) and name != f"{MODULE}.{definition.codes}"]
    assert all(torch.equal(old[name].view(-1), new[name].view(-1)) for name in held)
    assert not torch.equal(old[f"{MODULE}.{definition.codes}"].view(-1), new[f"{MODULE}.{definition.codes}"].view(-1))
    for name in old:
        end = name.removeprefix(f"{MODULE}.")
        if end == name and name not in region:
            assert torch.equal(old[name], new[name])
    opened = Checkpoint.open(quantized)
    expected = opened.tensor(NAME).clone()
    expected.view(-1)[torch.from_numpy(region.indices(NAME))] = 0
    cut = Checkpoint.open(out / "variants" / "cut")
    assert torch.equal(cut.tensor(NAME).view(torch.int16), expected.view(torch.int16))
    assert (out / "variants" / "cut" / "config.json").read_bytes() == (quantized / "config.json").read_bytes()

    patch = out / "variants" / "small.patch.safetensors"
    twin = plain_copy(plain, quantized, tmp_path / "twin")
    for source in (quantized, twin):
        again = apply(
            tmp_path / f"replay-{source.name}", source, f"{{file: {patch}}}",
            f"{{again: {{operations: [{{restore: drawn, from: {patch}}}]}}}}",
        )  # fmt: skip
        assert torch.equal(Checkpoint.open(again / "variants" / "again").tensor(NAME), expected)
    told = present(compare(quantized, out / "variants" / "softer").checkpoints)
    change = {tensor.name: tensor for tensor in told.tensors}[NAME]
    assert 0 < change.change.changed <= region.indices(NAME).size
    assert present(change.stored)[1] == 0
    assert json.loads((out / "report.json").read_text())["variants"]["softer"]["encoding"]["blocks"] > 0
    looked = look_at(str(quantized))
    assert looked["parameters"] == look_at(str(plain))["parameters"]
    assert opened.tensors[NAME].codec.words in looked["quantization"]  # type: ignore[attr-defined]
    stays_frozen(out / "variants" / "cut", plain_copy(plain, out / "variants" / "cut", tmp_path / "cut"), tmp_path)


@pytest.mark.parametrize("kind", ["int4", "int8", "awq", "int8-bitsandbytes"])
def test_a_bundle_freezes_the_dequantized_model(kind: str, plain: Path, tmp_path: Path) -> None:
    definition, tensors = DEFINITIONS[kind], load_file(plain / "model.safetensors")
    made = {f"{MODULE}.{end}": tensor for end, tensor in definition.encode(tensors.pop(NAME)).items()}
    quantized = written(plain, tmp_path / "model", {**tensors, **made}, definition.settings)
    out = apply(tmp_path / "run", quantized, "{select: {random: 0.02, seed: 1}}", "{kept: {freeze: drawn}}")
    stays_frozen(out / "variants" / "kept", plain_copy(plain, quantized, tmp_path / "dense"), tmp_path)


def stays_frozen(variant: Path, dense: Path, folder: Path) -> None:
    """Train the dequantized model a step with the bundle of the quantized one: the region stays, and is verified."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(dense)
    before = model.state_dict()[NAME].clone().reshape(-1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    freeze(model, variant, optimizer)
    ids = torch.arange(2, 34)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moved = torch.ones(before.numel(), dtype=torch.bool)
    moved[torch.from_numpy(Bundle.load(variant).region.indices(NAME))] = False
    after = model.state_dict()[NAME].reshape(-1)
    assert torch.equal(after[~moved], before[~moved])
    assert not torch.equal(after[moved], before[moved])
    model.save_pretrained(folder / "trained")
    verify_saved(folder / "trained", variant)
    with torch.no_grad():
        model.get_parameter(NAME).add_(1.0)
    with pytest.raises(FreezeError, match="have moved"):
        model.save_pretrained(folder / "moved")


@pytest.mark.parametrize("what", ["missing", "scale"])
@pytest.mark.parametrize(
    "kind", ["fp8-tensor", "nvfp4", "mxfp4-packed", "int4", "gptq", "awq", "nf4", "int8-bitsandbytes"]
)
def test_a_format_that_does_not_fit_is_exit_2(
    kind: str,
    what: str,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Scales that are not there; scales that are zero, or none where a block of zeros has a scale of zero."""
    definition, tensors = DEFINITIONS[kind], load_file(plain / "model.safetensors")
    made = {f"{MODULE}.{end}": tensor for end, tensor in definition.encode(tensors.pop(NAME)).items()}
    scales = made[f"{MODULE}.{definition.scales}"]
    if what == "missing":
        del made[f"{MODULE}.{definition.scales}"]
    elif scales.dtype == torch.uint8:
        scales.view(-1)[0] = 255
    else:
        scales.view(-1)[0] = float("nan") if definition.settings["quant_method"] == "bitsandbytes" else 0.0
    quantized = written(plain, tmp_path / "model", {**tensors, **made}, definition.settings)
    monkeypatch.setattr("sys.argv", ["surgeon", "diff", str(plain), str(quantized)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert MODULE in said.err.replace("\n", "")
    assert "Traceback" not in said.err
    assert not said.out


def test_every_operation_does_what_it_does_to_the_dequantized_model(make_model: ModelMaker, tmp_path: Path) -> None:
    """FP8 beside its dequantized copy, both restored from the original: the nearest codes of the copy's values."""
    original = make_model("qwen3", dtype="bfloat16")
    quantized = fp8(original, tmp_path / "fp8")
    twin = plain_copy(original, quantized, tmp_path / "twin")
    variants = f"""
  noisy: {{operations: [{{noise: drawn, relative: 0.5, seed: 1}}]}}
  filled: {{operations: [{{fill: drawn, mean: row}}]}}
  back: {{operations: [{{restore: drawn, from: {original}}}]}}
"""
    here = apply(tmp_path / "native", quantized, "{select: {random: 0.02, seed: 3}}", variants)
    file = here / "regions" / "drawn.region.safetensors"
    there = apply(tmp_path / "plain", twin, f"{{file: {file}}}", variants)
    region = Region.load(file)
    for name in ("noisy", "filled", "back"):
        ours, theirs = (Checkpoint.open(out / "variants" / name) for out in (here, there))
        held = stored(here / "variants" / name)
        for tensor in ours.tensors:
            made, wanted = (side.array(tensor).astype(np.float64) for side in (ours, theirs))
            if f"{tensor}_scale_inv" not in held:
                assert np.array_equal(made, wanted)
                continue
            if tensor not in region:
                continue
            at = region.indices(tensor)
            rows, columns = np.unravel_index(at, made.shape)
            scale = held[f"{tensor}_scale_inv"].double().numpy()[rows // BLOCK, columns // BLOCK]
            nearest = np.nanmin(np.abs(E4M3.astype(np.float64) * scale[:, None] - wanted[rows, columns, None]), axis=1)
            # The copy's values and the decoded ones are rounded to bfloat16 beside that.
            room = 2.0**-8 * (2 * np.abs(wanted[rows, columns]) + np.abs(made[rows, columns]))
            assert np.all(np.abs(made - wanted)[rows, columns] <= nearest + room)
            assert nearest.any()
