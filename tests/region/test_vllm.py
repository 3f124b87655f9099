"""A patch for a running vLLM says what its `CheckpointWeightPatch` documents, and changes what the patch changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.diff.comparison import compare
from surgeon.errors import RegionError
from surgeon.operations import Scale
from surgeon.operations.edits import Surgery
from surgeon.region.region import Region
from surgeon.region.vllm import WeightPatch, _their_class, weight_patches
from surgeon.write.patches import write_variant_patch
from surgeon.write.staging import write_variant


def load_as_vllm_does(weights: dict[str, torch.Tensor], patches: list[Any]) -> None:
    """What is documented of `load_checkpoint_weight_patches`: full tensors whose not-a-numbers mark what stays."""
    for patch in patches:
        assert patch.name
        assert patch.values.ndim == patch.indices.ndim == 1
        assert patch.values.numel() == patch.indices.numel()
        assert patch.values.is_contiguous()
        assert patch.indices.is_contiguous()
        assert patch.indices.dtype in (torch.int32, torch.int64)
        assert patch.dtype.is_floating_point
        assert len(torch.unique(patch.indices)) == len(patch.indices)
        assert 0 <= int(patch.indices.min()) <= int(patch.indices.max()) < math.prod(patch.shape)
        flat = torch.full((math.prod(patch.shape),), math.nan, dtype=patch.dtype)
        flat[patch.indices] = patch.values
        source, destination = flat.view(patch.shape), weights[patch.name]
        torch.where(source.isnan(), destination, source, out=destination)


def test_the_fields_are_those_of_vllm() -> None:
    assert WeightPatch._fields == ("name", "shape", "dtype", "values", "indices")
    assert _their_class()._fields == WeightPatch._fields  # vLLM's own, where it is installed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_patched_weights_are_the_variant_s(dtype: str, make_model: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_model("llama", dtype=dtype))
    generator = np.random.default_rng(0)
    names = [f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in ("mlp.up_proj", "input_layernorm")]
    region = Region.from_masks({name: generator.random(checkpoint.info(name).shape) < 0.3 for name in names})
    operations, regions = [Scale(scale="some", by=-2.0)], {"some": region}
    written = write_variant_patch(Surgery(checkpoint, operations, regions), tmp_path / "p.patch.safetensors", {})
    variant = write_variant(checkpoint, operations, regions, tmp_path / "variant")
    weights = load_file(checkpoint.folder / "model.safetensors")
    load_as_vllm_does(weights, list(weight_patches(str(written.path))))
    expected = load_file(variant.path / "model.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_what_vllm_cannot_take_is_refused(tmp_path: Path) -> None:
    def patch_between(before: torch.Tensor, after: torch.Tensor) -> Path:
        folders = []
        for label, tensor in (("before", before), ("after", after)):
            folder = tmp_path / f"{label}-{before.dtype}"
            folder.mkdir()
            save_file({"weight": tensor}, folder / "model.safetensors", {"format": "pt"})
            (folder / "config.json").write_text("{}", encoding="utf-8")
            folders.append(folder)
        path = tmp_path / f"{before.dtype}.patch.safetensors"
        compare(*folders, save_patch=path)
        return path

    with pytest.raises(RegionError, match="not-a-numbers"):
        list(weight_patches(patch_between(torch.zeros(4), torch.tensor([0.0, math.nan, 1.0, 0.0]))))
    with pytest.raises(RegionError, match="floating-point tensors only"):
        list(weight_patches(patch_between(torch.zeros(4, dtype=torch.int32), torch.ones(4, dtype=torch.int32))))
