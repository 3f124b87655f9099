"""A model of four shards that tests put on a Hub, a recipe on it, and what of it went over the wire.

PYTEST_DONT_REWRITE: it asserts nothing, and tests import it before it is loaded as a plugin.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hub_server import LoopbackHub
from numpy.typing import NDArray
from safetensors.numpy import save_file

LAYERS, SHAPE = 8, (256, 512)  # half a megabyte a tensor


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(LAYERS)]
    return {name: generator.normal(size=SHAPE).astype(np.float32) for name in names}


def write(folder: Path, tensors: dict[str, NDArray[np.float32]], shards: int = 4) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": SHAPE[0]}))
    weight_map = {}
    for i, names in enumerate(np.array_split(list(tensors), shards), 1):
        file = f"model-{i:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(map(str, names), file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model", weights())


def weight_bytes(hub: LoopbackHub) -> int:
    """Bytes of weight files that went over the wire so far."""
    return sum(one.sent for one in hub.seen("GET", "safetensors$"))


def in_cache(tmp_path: Path) -> set[str]:
    """Names of the files in the Hub's cache."""
    return {path.name for path in (tmp_path / "hub_cache").rglob("*") if path.is_file() and "snapshots" in path.parts}


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "remote",
    "model": "org/model",
    "regions": {
        "one": {"entries": [{"tensor": "model.layers.2.mlp.down_proj.weight", "index": [3, 4]}]},
        "some": {"select": {"random": 0.01, "seed": 1}, "layers": [5, 5]},
    },
    "variants": {
        "scaled": {"operations": [{"scale": "one", "by": 4.0}], "write": "patch"},
        "zeroed": {"operations": [{"zero": "some"}], "write": "patch"},
        "unwritten": {"operations": [{"zero": "some"}], "write": False},
    },
}


def recipe(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "output": str(tmp_path / "out"), **changes}))
    return path
