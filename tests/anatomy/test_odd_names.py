"""Names and fields that no sound checkpoint has are no tracebacks."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from surgeon.anatomy.slots import _natural
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError


def test_names_whose_digits_are_no_numbers() -> None:
    names = ["a.10.b", "a.2.b", "a.\u00b2.b", "a." + "9" * 5000]
    assert sorted(names, key=_natural)[:2] == ["a.2.b", "a.10.b"]


@pytest.mark.parametrize("architectures", [5, "LlamaForCausalLM", {"a": 1}, [None, 3], True])
def test_architectures_of_another_type_are_no_traceback(architectures: object, llama: Path, tmp_path: Path) -> None:
    from surgeon.anatomy.hollow import meta_model

    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "architectures": architectures}))
    with suppress(CheckpointError):  # where transformers itself does not take it
        meta_model(Checkpoint.open(folder))
