"""No code of a stranger runs, whatever stands on stdin: on the command line, and at every request in the source."""

from __future__ import annotations

import ast
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ModelMaker
from forking import run_forked

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError
from surgeon.foreign import load_config
from surgeon.model.model import load_model, model_places
from surgeon.model.tokenizer import load_tokenizer

PACKAGE = Path(surgeon.__file__).parent
DOOR = PACKAGE / "foreign.py"
ASKING = {"from_pretrained", "from_config", "_from_config", "load_dataset", "load_dataset_builder", "load_from_disk"}
RUNNING = {"get_class_from_dynamic_module", "pipeline", "load_adapter", "set_attn_implementation"}
BUILTINS = {"eval", "exec", "compile"}  # as names: `.eval()` of a model and `re.compile` are something else


def asks(name: str) -> bool:
    """True for what asks a library to load something, or runs text as code."""
    return name in ASKING | RUNNING | BUILTINS or (name.startswith("Auto") and name[4:5].isupper())


def names_called(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr not in BUILTINS:
            found.append((node.lineno, node.attr))
        elif isinstance(node, ast.Name):
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.alias):
            found.append((node.lineno, node.name))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # such as one for getattr
            found.append((node.lineno, "" if node.value in BUILTINS else node.value))
    return found


def test_libraries_are_asked_in_one_place_only() -> None:
    elsewhere = [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != DOOR
        for line, name in names_called(path)
        if asks(name)
    ]
    assert elsewhere == []


def test_files_of_the_hub_are_fetched_in_one_place_only() -> None:
    """Where each is held against the hash that the Hub named."""
    asking = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if {"hf_hub_download", "snapshot_download"} & {name for _, name in names_called(path)}
    }
    assert asking == {"checkpoint/hub.py", "checkpoint/sources.py"}  # this one asks the cache alone
    assert (PACKAGE / "checkpoint/sources.py").read_text().count("snapshot_download(") == 1
    assert "local_files_only=True" in (PACKAGE / "checkpoint/sources.py").read_text()


def test_that_place_says_no_each_time() -> None:
    calls = [
        node
        for node in ast.walk(ast.parse(DOOR.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ASKING
    ]
    assert len(calls) >= 3
    for call in calls:
        said = {word.arg: word.value for word in call.keywords}
        if isinstance(call.func, ast.Attribute) and call.func.attr == "load_dataset":
            assert {"data_files", "streaming"} <= said.keys()  # it knows no code, and is told which files to read
            continue
        answer = said["trust_remote_code"]
        assert isinstance(answer, ast.Constant)
        assert answer.value is False


def with_code(model: Path, folder: Path, *, config: dict[str, Any], tokenizer: dict[str, Any]) -> Path:
    """A copy of a model that brings code of its own, which leaves a file `ran` beside it when it runs."""
    shutil.copytree(model, folder)
    ran = folder.parent / "ran"
    for name in ("configuration_own", "modeling_own", "tokenization_own"):
        (folder / f"{name}.py").write_text(
            f"open({str(ran)!r}, 'w').close()\nfrom transformers import *\n"
            "class OwnConfig(LlamaConfig): pass\nclass OwnModel(LlamaForCausalLM): pass\n"
            "class OwnTokenizer(PreTrainedTokenizerFast): pass\n"
        )
    for name, more in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder


OWN_MODEL = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
OWN_TOKENIZER = {
    "tokenizer_class": "OwnTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
}


@pytest.fixture
def yes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))


def test_the_command_line_runs_no_code_although_stdin_says_yes(llama: Path, tmp_path: Path) -> None:
    model = with_code(llama, tmp_path / "m", config={}, tokenizer=OWN_TOKENIZER)
    command = ["verify", str(model), "--json", "--languages", "en", "--tokens", "24"]
    own = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    (done,) = run_forked([{"arguments": command, "stdin": "y\n" * 20, "environment": own}])
    assert not (tmp_path / "ran").exists()
    assert "[y/N]" not in done["stdout"]
    assert "Traceback" not in done["stderr"]
    if done["code"] == 0:  # with the tokenizer.json that lies there, as transformers reads it
        json.loads(done["stdout"])
    else:
        assert "the tokenizer is code inside the repository" in done["stderr"]


@pytest.mark.usefixtures("yes")
def test_an_architecture_of_transformers_works_without_the_code_beside_it(llama: Path, tmp_path: Path) -> None:
    model = with_code(llama, tmp_path / "m", config={"auto_map": OWN_MODEL}, tokenizer={})
    plain, other = (load_model(Checkpoint.open(folder), "float32") for folder in (llama, model))
    assert type(other.model) is type(plain.model)
    assert list(other.parameters) == list(plain.parameters)
    assert other.tokenizer("Würde")["input_ids"] == plain.tokenizer("Würde")["input_ids"]
    assert model_places(Checkpoint.open(model)) == model_places(Checkpoint.open(llama))
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("yes")
@pytest.mark.parametrize("kind", ["own", None])
def test_an_architecture_that_is_code_is_refused(llama: Path, tmp_path: Path, kind: str | None) -> None:
    config = {"auto_map": OWN_MODEL, "model_type": kind}
    model = with_code(llama, tmp_path / "m", config=config, tokenizer={})
    with pytest.raises(CheckpointError, match="code inside the repository; surgeon runs only the architectures"):
        load_model(Checkpoint.open(model), "float32")
    assert model_places(Checkpoint.open(model)) == {}
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("yes")
def test_a_tokenizer_that_is_code_is_refused(llama: Path, tmp_path: Path) -> None:
    config = {"auto_map": OWN_MODEL, "model_type": "own"}
    model = with_code(llama, tmp_path / "m", config=config, tokenizer=OWN_TOKENIZER)
    (model / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="the tokenizer is code inside the repository, which"):
        load_tokenizer(Checkpoint.open(model))
    assert not (tmp_path / "ran").exists()


def test_attention_that_a_config_names_is_not_fetched(make_model: ModelMaker, tmp_path: Path) -> None:
    """A name of the form org/name is code on the Hub, which transformers fetches and runs where it can."""
    for family in ("llama", "mixtral"):
        folder = tmp_path / family
        shutil.copytree(make_model(family), folder)
        said = json.loads((folder / "config.json").read_text())
        for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
            said[key] = "org/kernel"
        (folder / "config.json").write_text(json.dumps(said))
        config = load_config(folder)
        assert config._attn_implementation is None
        assert config._experts_implementation is None
        assert load_model(Checkpoint.open(folder), "float32").model.config._attn_implementation == "sdpa"
