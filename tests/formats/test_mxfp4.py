"""MXFP4 of gpt-oss: decoded as transformers decodes it, encoded by the nearest code, halves of bytes apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from quantizing import dequantized, mxfp4, stored, tiny_gpt_oss, written

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Coded
from surgeon.errors import CheckpointError, InputError

NAME = "model.layers.1.mlp.experts.gate_up_proj"
SETTINGS = {"quant_method": "mxfp4"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpt_oss(tmp_path_factory.mktemp("gpt_oss") / "model")


@pytest.fixture(scope="module")
def folder(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mxfp4(plain, tmp_path_factory.mktemp("mxfp4") / "model")


def coded(checkpoint: Checkpoint, name: str = NAME) -> Coded:
    info = checkpoint.tensors[name]
    assert isinstance(info, Coded)
    return info


def test_decoding_equals_transformers_to_the_bit(plain: Path, folder: Path) -> None:
    opened, state = Checkpoint.open(folder), dequantized(folder).state_dict()
    assert {name: (info.shape, info.dtype) for name, info in opened.tensors.items()} == {
        name: (info.shape, info.dtype) for name, info in Checkpoint.open(plain).tensors.items()
    }
    for name, info in opened.tensors.items():
        expected = state[name].contiguous().view(torch.int16)
        assert torch.equal(opened.tensor(name).view(torch.int16), expected), name
        flat = expected.numpy().reshape(-1)
        some = np.unique(np.random.default_rng(0).integers(0, info.numel, 60))
        assert np.array_equal(opened.entries(name, some).view(np.int16), flat[some])
        for low, high in ((0, 1), (info.numel // 3, info.numel // 2 + 1), (info.numel - 1, info.numel)):
            assert np.array_equal(opened.span(info, low, high).view(np.int16), flat[low:high])


def test_edits_change_halves_of_bytes_and_the_scales_of_blocks(folder: Path) -> None:
    """Beside the stored tensors of the same checkpoint, edited by hand in plain loops."""
    opened, tensors = Checkpoint.open(folder), stored(folder)
    info = coded(opened)
    blocks, scales = tensors[f"{NAME}_blocks"].clone(), tensors[f"{NAME}_scales"].clone()
    places = [(0, 0, 5), (0, 1, 5), (2, 40, 63), (3, 33, 0)]  # the first two share a byte
    flat = np.array([np.ravel_multi_index(place, info.shape) for place in places])
    order = np.argsort(flat)
    made = info.codec.encode(info, opened, flat[order], np.zeros(4))
    for e, k, n in places:
        keep = 0xF0 if k % 2 == 0 else 0x0F
        blocks[e, n, k // 32, k % 32 // 2] &= keep
    edit = made.stored[f"{NAME}_blocks"]
    after = tensors[f"{NAME}_blocks"].clone().reshape(-1)
    after[torch.from_numpy(edit.indices)] = torch.from_numpy(edit.values)
    assert torch.equal(after, blocks.reshape(-1))
    assert list(made.stored) == [f"{NAME}_blocks"]
    assert made.rounding.rounded == 0
    # twice everything in a block is too large for it: its scale is doubled, and all stays exact
    whole = opened.array(NAME).astype(np.float64)
    block = np.array([np.ravel_multi_index((1, k, 7), info.shape) for k in range(32, 64)])
    made = info.codec.encode(info, opened, block, 2 * whole.reshape(-1)[block])
    assert made.rounding.rescaled == 1
    assert made.rounding.rounded == 0
    assert made.stored[f"{NAME}_scales"].values.tolist() == [int(scales[1, 7, 1]) + 1]
    assert f"{NAME}_blocks" in made.stored
    assert made.indices.tolist() == block.tolist()
    assert np.array_equal(made.values.astype(np.float64), 2 * whole.reshape(-1)[block])
    with pytest.raises(InputError, match="too large"):
        info.codec.encode(info, opened, block[:1], np.array([1e40]))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda tensors, settings: tensors.pop(f"{NAME}_scales"), "has no scales"),
        (
            lambda tensors, settings: tensors.update({f"{NAME}_scales": torch.ones(4, 64, 3).byte()}),
            r"needs \[4, 64, 2\]",
        ),
        (lambda tensors, settings: tensors.update({f"{NAME}_scales": torch.ones(4, 64, 2)}), "in U8"),
        (lambda tensors, settings: settings.update(quant_method="fp8"), "says 'fp8'"),
    ],
)
def test_what_does_not_fit_is_refused(break_it, said: str, plain: Path, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tensors, settings = stored(folder), dict(SETTINGS)
    break_it(tensors, settings)
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.open(written(plain, tmp_path / "broken", tensors, settings))


def test_a_scale_that_is_none_is_refused(plain: Path, folder: Path, tmp_path: Path) -> None:
    tensors = stored(folder)
    tensors[f"{NAME}_scales"][2, 3, 1] = 255
    opened = Checkpoint.open(written(plain, tmp_path / "broken", tensors, SETTINGS))
    opened.entries(NAME, np.array([0]))
    with pytest.raises(CheckpointError, match="holds the scale nan"):
        opened.array(NAME)
