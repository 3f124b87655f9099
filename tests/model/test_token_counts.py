"""Counts of tokens are kept by all that decides them, and spare a run the tokenizer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.model.tokenizer import TokenCounts, load_tokenizer

TEXT = "Alle Menschen sind frei."


def counts(folder: Path, loaded: list[str]) -> TokenCounts:
    checkpoint = Checkpoint.open(folder)

    def load() -> object:
        loaded.append("loaded")
        return load_tokenizer(checkpoint)

    return TokenCounts(checkpoint, load)


def test_what_is_known_loads_no_tokenizer(llama: Path) -> None:
    loaded: list[str] = []
    first = counts(llama, loaded)
    length = first.count(TEXT)
    assert length == len(load_tokenizer(Checkpoint.open(llama))(TEXT, add_special_tokens=False)["input_ids"])
    begins = first.begun()
    first.keep()
    assert loaded
    loaded.clear()
    second = counts(llama, loaded)
    assert (second.count(TEXT), second.begun()) == (length, begins)
    assert not loaded


@pytest.mark.parametrize("what", ["tokenizer_config.json", "tokenizer.json", "config.json"])
def test_another_tokenizer_counts_again(llama: Path, tmp_path: Path, what: str) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    first = counts(folder, [])
    first.count(TEXT)
    first.keep()
    text = (folder / what).read_text()
    (folder / what).write_text(text + "\n" if what == "tokenizer.json" else json.dumps({**json.loads(text), "new": 1}))
    loaded: list[str] = []
    counts(folder, loaded).count(TEXT)
    assert loaded


def test_a_damaged_file_is_made_again(llama: Path) -> None:
    first = counts(llama, [])
    length = first.count(TEXT)
    first.keep()
    for path in Path(os.environ["SURGEON_CACHE"], "tokens").glob("*.json"):
        path.write_bytes(path.read_bytes().replace(str(length).encode(), str(length + 1).encode()))
    assert counts(llama, []).count(TEXT) == length


def test_a_run_with_nothing_new_imports_no_torch(recipe: Callable[..., Path], tmp_path: Path) -> None:
    import surgeon

    path = recipe()
    surgeon.apply(path)
    code = 'import sys, surgeon; surgeon.apply(sys.argv[1]); print({"torch", "transformers"} & {*sys.modules})'
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
