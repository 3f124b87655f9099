"""Trainers outside of the test environment: the real package where it is installed, with the configs of the page."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from freezing import assert_held, batches, load, make_bundle

from surgeon.errors import FreezeError
from surgeon.freeze import freeze

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "freezing.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.filterwarnings("default")


def block(kind: str, having: str) -> str:
    """The page's code block of a kind that has a word in it."""
    return next(text for text in re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) if having in text)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("base"))


def test_axolotl_takes_the_plugin_of_the_page(base: Path) -> None:
    """Its own plugin manager loads it, merges the key into its schema's arguments, and gets the callback from it."""
    integrations = pytest.importorskip("axolotl.integrations.base")
    from axolotl.utils.dict import DictDefault

    from surgeon.freeze.trainer import FreezeCallback

    config = DictDefault(yaml.safe_load(block("yaml", "surgeon_freeze")))
    manager = integrations.PluginManager.get_instance()
    for plugin in config.plugins:
        manager.register(plugin)
    (arguments,) = manager.get_input_args()
    module, _, name = arguments.rpartition(".")
    declared = getattr(__import__(module, fromlist=[name]), name)
    assert declared(surgeon_freeze="x").surgeon_freeze == "x"
    (callback,) = manager.add_callbacks_post_trainer(config, None)
    assert isinstance(callback, FreezeCallback)
    assert callback.source == config.surgeon_freeze
    with pytest.raises(FreezeError, match="needs `surgeon_freeze"):
        manager.add_callbacks_post_trainer(DictDefault({}), None)


def test_llamafactory_takes_callbacks() -> None:
    """Where it is installed its entry point has the arguments that the page gives it; the page's code is Python."""
    code = block("python", "run_exp")
    compile(code, "page", "exec")
    yaml.safe_load(block("yaml", "finetuning_type"))
    pytest.importorskip("llamafactory")
    try:
        from llamafactory.train.tuner import run_exp
    except ImportError as error:
        pytest.skip(f"llamafactory does not import here: {error}")
    assert list(inspect.signature(run_exp).parameters)[:2] == ["args", "callbacks"]


# Arguments of `FastLanguageModel.from_pretrained`, as documented for version 2026.10.9; importing it takes a GPU.
UNSLOTH = {"model_name", "max_seq_length", "dtype", "load_in_4bit", "load_in_8bit", "full_finetuning"}


def test_unsloth_through_trl(tmp_path: Path) -> None:
    """The page calls Unsloth with arguments that it documents, and the real TRL with its own."""
    trl = pytest.importorskip("trl")
    calls = {
        ast.unparse(node.func): {keyword.arg: keyword.value for keyword in node.keywords}
        for node in ast.walk(ast.parse(block("python", "unsloth")))
        if isinstance(node, ast.Call)
    }
    given = set(calls["FastLanguageModel.from_pretrained"])
    assert given <= UNSLOTH
    source = importlib.util.find_spec("unsloth")
    if source is not None and source.origin is not None:
        assert given <= _parameters(Path(source.origin).parent / "models" / "loader.py", "FastLanguageModel")
    assert set(calls["SFTTrainer"]) <= set(inspect.signature(trl.SFTTrainer.__init__).parameters)
    options = {name: ast.literal_eval(value) for name, value in calls["SFTConfig"].items() if name is not None}
    config = trl.SFTConfig(**{**options, "output_dir": str(tmp_path), "use_cpu": True, "bf16": False})
    assert config.optim == "adamw_8bit"


def _parameters(file: Path, kind: str) -> set[str]:
    """The arguments of a class's `from_pretrained`, read from its source."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == kind:
            made = next(f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "from_pretrained")
            return {argument.arg for argument in made.args.args}
    raise AssertionError(f"{file} has no {kind}")


def test_torchtitan_container(base: Path) -> None:
    """Its container of optimizers steps each of them; hooks on the container alone would come too late or never."""
    optimizer = pytest.importorskip("torchtitan.components.optimizer")
    model = load(base)
    container = optimizer.default_adamw(lr=1e-2).build(model_parts=[model])
    frozen = freeze(model, base, container)
    for batch in batches(3):
        container.zero_grad()
        model(**batch).loss.backward()
        container.step()
    assert_held(base, model, frozen)


def test_a_container_of_optimizers(base: Path) -> None:
    """The same in plain PyTorch: a container is itself an optimizer with hooks, and holds all parameters."""

    class Container(torch.optim.Optimizer):
        def __init__(self, model: Any) -> None:
            parameters = list(model.parameters())
            self.optimizers = [
                torch.optim.AdamW(part, lr=1e-2, weight_decay=0.1) for part in (parameters[:9], parameters[9:])
            ]
            super().__init__(parameters, {})

        def step(self, closure: Any = None) -> None:
            for each in self.optimizers:
                each.step()

    model = load(base)
    container = Container(model)
    frozen = freeze(model, base, container)
    for batch in batches(3):
        container.zero_grad()
        model(**batch).loss.backward()
        container.step()
    assert_held(base, model, frozen)
