"""Tiny real models, tokenizers and texts, made on the fly and kept for the session."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("SURGEON_MEMORY", "8G")  # how a model is run follows the memory there is
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models run slower on two threads than on one

import hypothesis
import pytest
from forking import run_forked
from hub_server import TOKEN, LoopbackHub

# The same examples every time, and no deadline on a busy machine.
hypothesis.settings.register_profile("surgeon", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("surgeon")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests come first, so that no worker waits long for another in the end."""
    long = {item.path for item in items if item.get_closest_marker("slow") or item.path.name == "test_docs.py"}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What fixtures of a module or of the session keep; the user's cache is not touched."""
    cache = tmp_path_factory.mktemp("session_cache")
    os.environ["SURGEON_CACHE"] = str(cache)
    (cache / "page").mkdir()
    return cache


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """What is written is not flushed to the disk, which a test could only see if the power failed.

    `write/test_crashes.py` strikes those calls too, in processes of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def with_pictures(cache: Path) -> Path:
    """An empty cache, but for the drawn pictures: they take seconds, and depend on nothing else."""
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "page").exists():
        (cache / "page").symlink_to(Path(os.environ["SURGEON_CACHE"], "page").resolve())
    return cache


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores are kept by content, so runs on the builtin model that score alike score once."""
    return with_pictures(tmp_path_factory.mktemp("shared-cache"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, _session_cache: Path) -> None:
    """No test reads or fills the user's cache, and none reaches the network."""
    monkeypatch.setenv("SURGEON_CACHE", str(with_pictures(tmp_path_factory.mktemp("cache"))))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)


def byte_tokenizer(bos: bool = False, template: str = "<s> $A"):  # type: ignore[no-untyped-def]
    """A tokenizer with one token per byte; with `bos` it puts the special tokens of `template` around every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: i + 2 for i, letter in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if bos:
        core.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


# A few thousand parameters each; every family has two layers. The first dictionary suits all but the older ones.
_MODERN = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 258, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
_OLD = {"vocab_size": 258, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_NEOX = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, **_OLD}
_OPT = {"ffn_dim": 48, "max_position_embeddings": 64, **_OLD}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", _MODERN),
    "mistral": ("Mistral", _MODERN),
    "qwen2": ("Qwen2", _MODERN),
    "qwen3": ("Qwen3", _MODERN),
    "gemma2": ("Gemma2", {**_MODERN, "head_dim": 8}),
    "gemma3": ("Gemma3Text", {**_MODERN, "head_dim": 8}),
    "phi3": ("Phi3", _MODERN),
    "olmo2": ("Olmo2", _MODERN),
    "mixtral": ("Mixtral", {**_MODERN, "num_local_experts": 4}),
    "qwen3_moe": ("Qwen3Moe", {**_MODERN, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **_OLD}),
    "gpt_neox": ("GPTNeoX", {**_NEOX, "intermediate_size": 48, "max_position_embeddings": 64}),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, **_OLD}),
    "falcon": ("Falcon", {**_NEOX, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_7b": ("Falcon", {**_NEOX, "multi_query": True, "bias": True}),
    "opt": ("OPT", {**_NEOX, **_OPT, "word_embed_proj_dim": 32}),
    "xglm": ("XGLM", {"d_model": 32, "num_layers": 2, "attention_heads": 4, **_OPT}),
}


def tiny_config(family: str, **changes: object):  # type: ignore[no-untyped-def]
    """A small config of a family."""
    import transformers

    name, values = FAMILIES[family]
    return getattr(transformers, f"{name}Config")(**{**values, **changes})


ModelMaker = Callable[..., Path]


def new_model(
    folder: Path, family: str, dtype: str, shard: str, seed: int, bos: bool, template: str, **config: object
) -> None:
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(family, **config))
    with torch.no_grad():  # far from the initial state, where norms are all one and biases all zero
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    byte_tokenizer(bos, template).save_pretrained(folder)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> ModelMaker:
    """`make_model("llama", dtype="bfloat16", shard="20KB", tie_word_embeddings=True, bos=True)` -> folder.

    Each is a folder of its own, a copy where such a model was made before.
    """
    known: dict[str, Path] = {}

    def make(
        family: str = "llama",
        dtype: str = "float32",
        shard: str = "1GB",
        seed: int = 0,
        bos: bool = False,
        template: str = "<s> $A",
        **config: object,
    ) -> Path:
        key = repr((family, dtype, shard, seed, bos, template, sorted(config.items())))
        folder = tmp_path_factory.mktemp(family) / "model"
        if key in known:
            shutil.copytree(known[key], folder, copy_function=shutil.copyfile)  # whose times are new
        else:
            new_model(folder, family, dtype, shard, seed, bos, template, **config)
            if sum(path.stat().st_size for path in folder.iterdir()) < 1 << 22:
                known[key] = Path(shutil.copytree(folder, tmp_path_factory.mktemp("made") / "model"))
        return folder

    return make


@pytest.fixture(scope="session")
def llama(make_model: ModelMaker) -> Path:
    """A float32 Llama with two layers."""
    return make_model("llama")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two languages of text in local files."""
    folder = tmp_path_factory.mktemp("texts")
    german = "Alle Menschen sind frei und gleich an Würde und Rechten geboren. "
    french = "Tous les êtres humains naissent libres et égaux en dignité et en droits. "
    result = {}
    for language, sentence in (("de", german), ("fr", french)):
        path = folder / f"{language}.txt"
        path.write_text("\n".join(f"{i}. {sentence}" for i in range(12)) + "\n", encoding="utf-8")
        result[language] = str(path)
    return result


@pytest.fixture
def recipe(tmp_path: Path, llama: Path, texts: dict[str, str]) -> Callable[..., Path]:
    """`recipe(old=new, ...)` writes a small complete recipe, with pieces of its text replaced."""

    def write(**replacements: str) -> Path:
        text = f"""\
version: 1
name: test
model: {llama}
corpus: {{de: {texts["de"]}, fr: {texts["fr"]}}}
regions:
  core:
    score: {{kind: grad_param, languages: [de, fr], samples: 4, sequence_length: 32}}
    select: {{top: 0.05}}
  bottom: {{from: core, select: {{bottom: 0.05}}, exclude: [norm]}}
  random: {{select: {{random: 0.05, seed: 7}}, exclude: [norm]}}
variants:
  cut: {{operations: [{{zero: core}}]}}
  control: {{operations: [{{zero: bottom}}], write: false}}
verify:
  tokens: 64
  window: 32
output: {tmp_path / "out"}
"""
        for old, new in replacements.items():
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def light_recipe(recipe: Callable[..., Path]) -> Callable[..., Path]:
    """`recipe` without anything that runs the model: scores from the weights alone, and no verification."""

    def write(**replacements: str) -> Path:
        score = "score: {kind: grad_param, languages: [de, fr], samples: 4, sequence_length: 32}"
        verify = "verify:\n  tokens: 64\n  window: 32\n"
        return recipe(**{score: "score: {kind: magnitude}", verify: "", **replacements})

    return write


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """A Hub on loopback, empty."""
    with LoopbackHub() as server:
        yield server


@pytest.fixture
def surgeon_on_hub(hub: LoopbackHub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`surgeon_on_hub("inspect", "hf://org/name", token=None)` runs the command line with `hub` as its Hub.

    The client waits between its retries; this one does not.
    """

    def run(*arguments: str | Path, token: str | None = TOKEN, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = hub.environment(tmp_path / "hf_home", token) | changes
        case = {"arguments": [*map(str, arguments)], "environment": environment, "alone": True, "impatient": True}
        (done,) = run_forked([case])
        return subprocess.CompletedProcess(arguments, done["code"], done["stdout"], done["stderr"])

    return run


@pytest.fixture
def hub_here(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """`hub`, as the Hub of this very process; no waiting between retries."""
    import time

    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    close_session()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses.json"), raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return hub


_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium, driven by Playwright; without one the tests that want it are skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=_QUIET)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def small_run(llama: Path, texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder: a core cut out, a control drawn twice, and a variant that is measured only."""
    import surgeon

    folder = tmp_path_factory.mktemp("small")
    (folder / "recipe.yaml").write_text(f"""\
version: 1
name: small
model: {llama}
corpus: {{de: {texts["de"]}, fr: {texts["fr"]}}}
regions:
  core: {{score: {{kind: magnitude}}, select: {{top: 0.2}}, exclude: [norm]}}
  random: {{control: {{of: core, draw: random}}}}
variants:
  cut: {{operations: [{{zero: core}}]}}
  halved: {{operations: [{{scale: core, by: 0.5}}], write: false}}
  drawn: {{operations: [{{zero: random}}], sweep: {{seed: {{set: regions.random.control.seed, to: [0, 1]}}}}}}
verify: {{tokens: 32, window: 16}}
output: {folder / "out"}
""")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURGEON_CACHE", str(folder / "cache"))
        surgeon.apply(folder / "recipe.yaml")
    return folder / "out"
