"""FP8 with block scales: what is decoded is what transformers decodes, and an edit changes what it must and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ModelMaker
from quantizing import BLOCK, fp8, stored, written

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Coded
from surgeon.checkpoint.torch_files import as_tensor
from surgeon.errors import CheckpointError, InputError

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def plain(make_model: ModelMaker) -> Path:
    return make_model("qwen3", dtype="bfloat16")


@pytest.fixture(scope="module")
def folder(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fp8(plain, tmp_path_factory.mktemp("fp8") / "model")


def coded(checkpoint: Checkpoint, name: str = NAME) -> Coded:
    info = checkpoint.tensors[name]
    assert isinstance(info, Coded)
    return info


def test_decoding_equals_transformers_to_the_bit(plain: Path, folder: Path) -> None:
    import transformers

    how = transformers.FineGrainedFP8Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.bfloat16)
    opened, other = Checkpoint.open(folder), Checkpoint.open(plain)
    assert {name: info.shape for name, info in opened.tensors.items()} == {
        name: info.shape for name, info in other.tensors.items()
    }
    state = model.state_dict()
    for name, info in opened.tensors.items():
        assert info.dtype == "BF16"
        whole = opened.tensor(name)
        assert torch.equal(whole.view(torch.int16), state[name].contiguous().view(torch.int16)), name
        flat = whole.view(torch.int16).numpy().reshape(-1)
        some = np.unique(np.random.default_rng(0).integers(0, info.numel, 40))
        assert np.array_equal(opened.entries(name, some).view(np.int16), flat[some])
        low, high = info.numel // 3, info.numel // 2 + 1
        assert np.array_equal(opened.span(info, low, high).view(np.int16), flat[low:high])


def test_ragged_blocks_and_stacks_are_decoded_by_the_definition(plain: Path, tmp_path: Path) -> None:
    """DeepSeek-V3 has blocks that are cut off, which transformers refuses: held to the definition, entry by entry."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(3, 21, 37, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2, 3, generator=generator) + 0.5
    tensors = {"experts.weight": codes, "experts.weight_scale_inv": scales}
    settings = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    opened = Checkpoint.open(written(plain, tmp_path / "ragged", tensors, settings))
    info = coded(opened, "experts.weight")
    wide = codes.float()
    expected = torch.empty(3, 21, 37, dtype=torch.bfloat16)
    for m, i, j in np.ndindex(3, 21, 37):
        expected[m, i, j] = wide[m, i, j] * scales[m, i // BLOCK, j // BLOCK]
    assert torch.equal(opened.tensor("experts.weight"), expected)
    flat = expected.reshape(-1)
    for start, stop in ((0, 5), (30, 900), (777, 778), (0, 3 * 21 * 37)):
        assert torch.equal(as_tensor(opened.span(info, start, stop)), flat[start:stop])
    every = np.concatenate([info.codec.members(info, opened, np.array([block])) for block in range(18)])  # type: ignore[attr-defined]
    assert np.array_equal(np.sort(every), np.arange(3 * 21 * 37))


def test_new_values_keep_the_scale_where_they_fit(folder: Path) -> None:
    """Beside a plain loop over all codes: the nearest one, in the stored scale."""
    opened = Checkpoint.open(folder)
    info = coded(opened)
    indices = np.array([0, 5, 40, 700])
    before = opened.entries(NAME, indices).astype(np.float64)
    wanted = before * 0.7
    made = info.codec.encode(info, opened, indices, wanted)
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    scales = stored(folder)[f"{NAME}_scale_inv"].double().numpy()
    assert list(made.stored) == [NAME]
    for at, value, code in zip(indices, wanted, made.stored[NAME].values.view(np.uint8), strict=True):
        scale = scales[at // info.shape[1] // BLOCK, at % info.shape[1] // BLOCK]
        assert np.nanmin(np.abs(every * scale - value)) == abs(every[code] * scale - value)
    assert made.rounding.blocks
    assert not made.rounding.rescaled
    error = np.abs(made.values.astype(np.float64) - wanted)
    assert made.rounding.largest == error.max()
    assert made.rounding.norm == pytest.approx(np.sqrt((error**2).sum()))


def test_a_block_that_does_not_fit_gets_another_scale_alone(folder: Path) -> None:
    opened = Checkpoint.open(folder)
    info = coded(opened)
    whole = opened.array(NAME).astype(np.float64).reshape(-1)
    most = np.abs(whole).max()
    made = info.codec.encode(info, opened, np.array([3]), np.array([most * 10]))
    assert made.rounding.rescaled == 1
    assert made.stored[f"{NAME}_scale_inv"].indices.tolist() == [0]
    square = [row * info.shape[1] + column for row in range(BLOCK) for column in range(BLOCK)]
    assert made.indices.tolist() == square
    others = made.indices != 3
    assert abs(float(made.values[3]) - most * 10) <= most * 10 / 16
    largest = np.abs(whole[square]).max()  # untouched entries stay, but for those that are next to nothing
    moved = np.abs(made.values[others].astype(np.float64) - whole[square][others])
    assert moved.max() <= largest / 256
    assert made.rounding.rounded == np.count_nonzero(moved) + (float(made.values[3]) != most * 10)


def test_what_an_entry_has_is_kept_and_zero_is_exact(folder: Path) -> None:
    opened = Checkpoint.open(folder)
    info = coded(opened)
    indices = np.arange(info.numel)
    values = opened.entries(NAME, indices).astype(np.float64)
    same = info.codec.encode(info, opened, indices, values)
    assert not same.stored
    zeroed = info.codec.encode(info, opened, indices[7:9], np.zeros(2))
    assert zeroed.stored[NAME].values.view(np.uint8).tolist() == [0, 0]
    assert zeroed.rounding.rounded == 0
    shuffled = values[:BLOCK].copy()[::-1]  # a row of one block
    mixed = info.codec.encode(info, opened, indices[:BLOCK], shuffled)
    assert mixed.rounding.rounded == 0
    assert np.array_equal(mixed.values.astype(np.float64), shuffled)
    with pytest.raises(InputError, match="not finite"):
        info.codec.encode(info, opened, indices[:1], np.array([np.inf]))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda tensors, settings: tensors.pop(NAME), "which is not there"),
        (lambda tensors, settings: tensors.update({f"{NAME}_scale_inv": torch.ones(1, 3)}), r"needs \[2, 3\]"),
        (lambda tensors, settings: tensors.update({NAME: tensors[NAME].view(torch.uint8)}), "is U8, though"),
        (lambda tensors, settings: settings.update(quant_method="mxfp4"), "says 'mxfp4'"),
        (lambda tensors, settings: settings.update(weight_block_size=[0, 16]), "two whole numbers"),
        (lambda tensors, settings: settings.update(weight_block_size="x" * 500), "two whole numbers"),
        (lambda tensors, settings: settings.update(weight_block_size=[8, 8]), r"blocks of 8 x 8"),
    ],
)
def test_what_does_not_fit_is_refused(break_it, said: str, plain: Path, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tensors, settings = stored(folder), {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    break_it(tensors, settings)
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.open(written(plain, tmp_path / "broken", tensors, settings))


@pytest.mark.parametrize("scale", [float("nan"), 0.0, float("inf"), -1.0])
def test_scales_that_are_none_are_refused(scale: float, plain: Path, folder: Path, tmp_path: Path) -> None:
    tensors = stored(folder)
    tensors[f"{NAME}_scale_inv"][1, 1] = scale
    settings = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    opened = Checkpoint.open(written(plain, tmp_path / "broken", tensors, settings))
    info = coded(opened)
    opened.entries(NAME, np.array([0]))  # another block
    with pytest.raises(CheckpointError, match="holds the scale"):
        opened.array(NAME)
    with pytest.raises(CheckpointError, match="holds the scale"):
        info.codec.encode(info, opened, np.array([BLOCK * info.shape[1] + BLOCK]), np.zeros(1))


def test_scales_in_exponents(plain: Path, tmp_path: Path) -> None:
    """Scales of powers of two in E8M0, or in bytes that mean the same, as `scale_fmt: ue8m0` says."""
    folder = fp8(plain, tmp_path / "model", scale_fmt="ue8m0")
    opened = Checkpoint.open(folder)
    info = coded(opened)
    assert info.parts["scales"].dtype == "F8_E8M0"
    tensors = stored(folder)
    tensors |= {name: t.view(torch.uint8) for name, t in tensors.items() if t.dtype == torch.float8_e8m0fnu}
    settings = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "scale_fmt": "ue8m0"}
    bytes_ = Checkpoint.open(written(plain, tmp_path / "bytes", tensors, settings))
    assert torch.equal(opened.tensor(NAME), bytes_.tensor(NAME))
    made = [
        one.tensors[NAME].codec.encode(one.tensors[NAME], one, np.array([3]), np.array([50.0]))  # type: ignore[attr-defined]
        for one in (opened, bytes_)
    ]
    edits = [encoded.stored[f"{NAME}_scale_inv"].values.view(np.uint8).tolist() for encoded in made]
    assert edits[0] == edits[1]
    assert made[0].rounding == made[1].rounding
