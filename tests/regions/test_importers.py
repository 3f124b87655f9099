"""Regions from other projects' files, written here as those projects write them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ModelMaker, tiny_config
from safetensors.torch import load_file

import surgeon
from surgeon.api import plan_recipe
from surgeon.checkpoint.storage import header_bytes
from surgeon.errors import RecipeError
from surgeon.region.region import Region


def write_recipe(folder: Path, model: Path, regions: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"""\
version: 1
name: r
model: {model}
regions:
{regions}
variants:
  cut: {{operations: [{{zero: a}}]}}
output: {folder / "out"}
""")
    return path


def region_of(folder: Path, model: Path, spec: str) -> Region:
    return Region.load(surgeon.score(write_recipe(folder, model, f"  a: {spec}"))["a"])


def problem(folder: Path, model: Path, spec: str) -> str:
    with pytest.raises(RecipeError) as caught:
        plan_recipe(write_recipe(folder, model, f"  a: {spec}"))
    return str(caught.value).removeprefix(f"{folder}/recipe.yaml:5: ")


def save_masks(folder: Path, model: Path) -> dict[str, torch.Tensor]:
    """As the authors do: of every parameter whose name has `layers.`, the top of a score, a file per tensor."""
    folder.mkdir()
    torch.manual_seed(0)
    masks = {}
    for name, parameter in transformers.AutoModelForCausalLM.from_pretrained(model).named_parameters():
        if "layers." in name:
            masks[name] = torch.zeros(parameter.shape, dtype=torch.bool)
            masks[name].view(-1)[torch.rand(parameter.numel()).topk(int(0.05 * parameter.numel())).indices] = True
            torch.save(masks[name], folder / f"{name}.pt")
    return masks


@pytest.mark.parametrize("zipped", [True, False])
def test_a_folder_of_masks_is_a_region(llama: Path, tmp_path: Path, zipped: bool) -> None:
    masks = save_masks(tmp_path / "top", llama)
    if not zipped:  # as torch saved before 1.6
        for name, mask in masks.items():
            torch.save(mask, tmp_path / "top" / f"{name}.pt", _use_new_zipfile_serialization=False)
    region = region_of(tmp_path, llama, f"{{file: {tmp_path / 'top'}}}")
    assert set(region) == set(masks)
    for name, mask in masks.items():
        assert torch.equal(torch.from_numpy(region.mask(name)), mask)
    assert region.metadata["made_from"] == {"masks": "top"}
    surgeon.apply(tmp_path / "recipe.yaml")
    before, after = (
        load_file(folder / "model.safetensors") for folder in (llama, tmp_path / "out" / "variants" / "cut")
    )
    for name, values in before.items():
        assert torch.equal(after[name], values.masked_fill(masks.get(name, torch.tensor(False)), 0))


def test_masks_that_are_none_are_refused(llama: Path, tmp_path: Path) -> None:
    folder, name = tmp_path / "top", "model.layers.0.mlp.up_proj.weight"
    spec, file = f"{{file: {folder}}}", folder / f"{name}.pt"
    folder.mkdir()
    assert problem(tmp_path, llama, spec).endswith("neither a region file nor a folder of masks named TENSOR.pt")
    torch.save(torch.zeros(48, 32), file)
    assert "holds a tensor of torch.float32; a mask is one boolean tensor" in problem(tmp_path, llama, spec)
    torch.save({"mask": torch.zeros(48, 32).bool()}, file)
    assert "holds a dict; a mask is one boolean tensor" in problem(tmp_path, llama, spec)
    for damaged in (b"PK not a zip", b"junk", b"\x80\x02.", b"", b"}R"):  # each fails in another way inside torch
        file.write_bytes(damaged)
        assert str(file) in problem(tmp_path, llama, spec)
    torch.save(torch.zeros(4, 4).bool(), file)
    assert "of shape [4, 4]; in" in problem(tmp_path, llama, spec)
    torch.save(torch.zeros(48, 32).bool(), file)
    assert problem(tmp_path, llama, spec) == "region 'a': what the file holds is empty"
    file.rename(folder / "elsewhere.weight.pt")
    assert "has tensor 'elsewhere.weight', which" in problem(tmp_path, llama, spec)


class Payload:
    """What a hostile pickle does: its loading makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_in_a_pickle_runs(llama: Path, tmp_path: Path, zipped: bool) -> None:
    (tmp_path / "top").mkdir()
    file, harm = tmp_path / "top" / "model.norm.weight.pt", tmp_path / "harm"
    torch.save(Payload(harm), file, _use_new_zipfile_serialization=zipped)
    assert "could run code that it brings; load it where you trust it" in problem(
        tmp_path, llama, f"{{file: {tmp_path / 'top'}}}"
    )
    assert "could run code" in problem(tmp_path, llama, f"{{neurons: {{file: {file}, language: 0}}}}")
    assert not harm.exists()


# (gate and up, down) of the families' layers: names of modules, to which a neuron is a row and a column.
NEURONS = {
    "llama": (["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj"),
    "opt": (["fc1"], "fc2"),
    "bloom": (["mlp.dense_h_to_4h"], "mlp.dense_4h_to_h"),
    "gpt2": (["mlp.c_fc"], "mlp.c_proj"),
    "phi3": (["mlp.gate_up_proj"], "mlp.down_proj"),
}


@pytest.mark.parametrize("family", NEURONS)
def test_a_file_of_neurons_is_a_region(family: str, make_model: ModelMaker, tmp_path: Path) -> None:
    """The published form, a list over languages of a list over layers of index tensors; neurons cut are silent."""
    folder = make_model(family)
    found = [[torch.tensor([1]), torch.tensor([2])], [torch.tensor([3, 17, 40]), torch.tensor([], dtype=torch.long)]]
    torch.save(found, tmp_path / "x.neuron.pth")
    region = region_of(tmp_path, folder, f"{{neurons: {{file: {tmp_path / 'x.neuron.pth'}, language: 1}}}}")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = {name: torch.zeros(parameter.shape).bool() for name, parameter in model.named_parameters()}
    inner, outer = NEURONS[family]
    width = 48 if family != "bloom" and family != "gpt2" else 128
    for name, mask in expected.items():
        module = next((m for m in (*inner, outer) if f".0.{m}." in name), None)
        rows = [3, 17, 40] + ([width + i for i in (3, 17, 40)] if family == "phi3" else [])
        if module in inner:
            (mask.T if family == "gpt2" and mask.dim() == 2 else mask)[rows] = True
        elif module == outer and mask.dim() == 2:
            (mask if family == "gpt2" else mask.T)[[3, 17, 40]] = True
    assert {name for name in expected if expected[name].any()} == {n for n in region if region.indices(n).size}
    for name in region:
        assert torch.equal(torch.from_numpy(region.mask(name)), expected[name]), name

    surgeon.apply(tmp_path / "recipe.yaml")
    silenced = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "variants" / "cut").eval()
    module = next(m for name, m in model.named_modules() if name.endswith(f".0.{outer}"))
    module.register_forward_pre_hook(lambda _, arguments: arguments[0].index_fill_(-1, torch.tensor([3, 17, 40]), 0))
    tokens = torch.arange(2, 42)[None]
    with torch.no_grad():  # as that project silences neurons: their activations are set to zero
        torch.testing.assert_close(silenced(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_neurons_that_do_not_fit_are_refused(llama: Path, make_model: ModelMaker, tmp_path: Path) -> None:
    file = tmp_path / "x.neuron.pth"

    def refusal(data: object, model: Path = llama, language: int = 0) -> str:
        torch.save(data, file)
        return problem(tmp_path, model, f"{{neurons: {{file: {file}, language: {language}}}}}").removeprefix(f"{file}")

    good = [torch.tensor([1]), torch.tensor([2])]
    assert refusal([good], language=1) == ": holds 1 languages, so the last is language 0"
    assert refusal([[*good, *good]]) == ": has neurons for 4 layers, but the model has 2"
    assert ": layer 0 has neuron 48, but the model has 48 in" in refusal([[torch.tensor([48]), torch.tensor([])]])
    assert "must hold, for each language" in refusal(torch.zeros(3))
    assert "must be a list of whole numbers" in refusal([[torch.tensor([0.5]), torch.tensor([2])]])
    assert "mixture of experts" in refusal([good], make_model("mixtral"))


def test_a_super_weight_by_its_published_coordinates(llama: Path, tmp_path: Path) -> None:
    """Layer 1, down projection [2070, 7310], on a model of that width, all zeros: exactly that entry."""
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    config = tiny_config(
        "llama", intermediate_size=7400, hidden_size=2080, num_attention_heads=4, num_key_value_heads=1
    )
    config.save_pretrained(model)
    with torch.device("meta"):
        wide = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    specs = [(name, "F32", tuple(tensor.shape)) for name, tensor in wide.items()]
    with (model / "model.safetensors").open("wb") as file:
        file.write(header_bytes(specs, {"format": "pt"}))
        file.truncate(file.tell() + 4 * sum(tensor.numel() for tensor in wide.values()))
    name = "model.layers.1.mlp.down_proj.weight"
    region = region_of(tmp_path, model, f"{{entries: [{{tensor: {name}, index: [2070, 7310]}}]}}")
    assert region.mask(name)[2070, 7310]
    assert region.entries == 1


def test_every_kind_of_region_can_be_narrowed(llama: Path, tmp_path: Path) -> None:
    save_masks(tmp_path / "top", llama)
    recipe = write_recipe(
        tmp_path,
        llama,
        f"""\
  a: {{file: {tmp_path / "top"}, include: [mlp], layers: [1, 1]}}
  whole: {{file: {tmp_path / "top"}}}
  b: {{combine: a | whole, exclude: [norm, mlp]}}
  c: {{entries: [{{tensor: attn, rows: [0]}}], layers: [0, 0], exclude: [attn.q]}}
  d: {{dimensions: {{of: whole, residual: 2}}, include: [model.layers.1.input_layernorm.weight]}}""",
    )
    regions = {name: Region.load(path) for name, path in surgeon.score(recipe).items()}
    names = {label: {name.removesuffix("_proj.weight") for name in region} for label, region in regions.items()}
    assert names["a"] == {f"model.layers.1.mlp.{part}" for part in ("gate", "up", "down")}
    assert names["b"] == {f"model.layers.{i}.self_attn.{part}" for i in (0, 1) for part in "qkvo"}
    assert names["c"] == {f"model.layers.0.self_attn.{part}" for part in "kvo"}
    assert names["d"] == {"model.layers.1.input_layernorm.weight"}
    assert regions["d"].entries == 2
    for label in "ab":
        for name in regions[label]:
            assert (regions[label].mask(name) == regions["whole"].mask(name)).all()
    planned = plan_recipe(recipe).regions
    assert {name: len(planned[name].tensors) for name in planned} == {name: len(regions[name]) for name in regions}
    assert planned["a"].entries == regions["a"].entries
    assert all(planned[name].entries >= regions[name].entries for name in regions)
    assert "names no role and no tensor" in problem(tmp_path, llama, f"{{file: {tmp_path / 'top'}, include: [mpl]}}")
    assert "selects nothing in its scope" in problem(tmp_path, llama, f"{{file: {tmp_path / 'top'}, include: [embed]}}")
