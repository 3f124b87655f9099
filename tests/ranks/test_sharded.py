"""No layer up to 405B needs more than one device; one that did would be sharded by torch's own means."""

from __future__ import annotations

from pathlib import Path

import pytest
import sharded
from conftest import ModelMaker
from launching import run_ranks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("how", ["fully_shard", "tensor_parallel"])
def test_a_sharded_layer_has_the_gradients_of_the_whole(how: str, make_model: ModelMaker, tmp_path: Path) -> None:
    run_ranks(2, sharded.compare, str(make_model("llama")), how, folder=tmp_path)
