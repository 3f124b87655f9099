"""What the tests of freezing read, and never write to."""

from __future__ import annotations

from pathlib import Path

import pytest
from freezing import make_bundle


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in float32, with 5 % of every tensor in its bundle."""
    return make_bundle(tmp_path_factory.mktemp("frozen-base"))
