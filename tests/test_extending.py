"""What another package adds by entry points works in recipes as our own does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import with_pictures
from safetensors.numpy import load_file

from surgeon.anatomy.scope import scope
from surgeon.api import plan_recipe
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.kinds import OWN, kinds
from surgeon.region.region import Region
from surgeon.report.data import Report

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "surgeon"
RECIPE = """\
version: 1
name: extended
model: {model}
corpus: {{de: {de}, fr: {fr}}}
regions:
  fisher:
    score: {{kind: fisher, languages: [de, fr], samples: 4, sequence_length: 24, batch_size: 2}}
    select: {{top: 0.03}}
  reach: {{score: {{kind: reach, languages: [de], samples: 4, sequence_length: 24}}, select: {{top: 0.03}}}}
  spread: {{score: {{kind: spread}}, select: {{top: 0.02, scope: role}}}}
  few: {{first: {{count: 3}}, include: [mlp.up]}}
  both: {{combine: few | spread}}
variants:
  negated: {{operations: [{{negate: few}}]}}
verify: {{tokens: 40, window: 16, hits: {{among: 5}}}}
output: {out}
"""


@pytest.fixture(scope="module")
def run(llama: Path, texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a recipe of such kinds, run from the command line with the package installed."""
    folder = tmp_path_factory.mktemp("extended")
    out, recipe = folder / "out", folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=llama, out=out, **texts))
    seen = os.pathsep.join([str(HERE / "extension"), str(PACKAGE.parent)])
    environment = {**os.environ, "PYTHONPATH": seen, "SURGEON_CACHE": str(with_pictures(folder / "cache"))}
    command = [sys.executable, "-m", "surgeon", "apply", str(recipe)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def plain_gradients(model: Path, text: str) -> dict[str, list[np.ndarray]]:
    """The gradients of each batch of two sequences by plain transformers, of the mean loss over all tokens."""
    import transformers

    from surgeon.text.windows import beginning, scoring_sequences, tokenize

    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    sequences = scoring_sequences(tokenize(tokenizer, text), beginning(tokenizer), 4, 24)
    count = sum(len(ids) - 1 for ids in sequences)
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(sequences), 2):
        loaded.zero_grad()
        for ids in sequences[start : start + 2]:
            tokens = torch.tensor([ids])
            logits = loaded(tokens).logits[0, :-1]
            (torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum") / count).backward()
        for name, parameter in loaded.named_parameters():
            assert parameter.grad is not None
            found.setdefault(name, []).append(parameter.grad.numpy().copy())
    return found


def test_a_score_of_gradients_is_its_definition(run: Path, llama: Path, recipe: Callable[..., Path]) -> None:
    region = Region.load(run / "regions" / "fisher.region.safetensors")
    corpus = plan_recipe(recipe()).corpus
    languages = [plain_gradients(llama, corpus.text(language).score) for language in ("de", "fr")]
    for name in region:
        total = sum(sum(gradient.astype(np.float64) ** 2 for gradient in found[name]) for found in languages)
        assert isinstance(total, np.ndarray)
        order = np.argsort(-total, axis=None, kind="stable")[: region[name].entries]
        assert region[name].entries == int(0.03 * total.size)
        overlap = np.intersect1d(order, region.indices(name)).size
        assert overlap >= region[name].entries - 1, name  # float32 may turn two neighbours round


def test_a_score_of_inputs_selects_its_share_of_matrices(run: Path) -> None:
    region = Region.load(run / "regions" / "reach.region.safetensors")
    assert region.entries == sum(int(0.03 * region[name].numel) for name in region) > 0
    assert not [name for name in region if "norm" in name]


def test_a_scope_shares_a_cut_over_layers(run: Path, llama: Path) -> None:
    region, checkpoint = Region.load(run / "regions" / "spread.region.safetensors"), Checkpoint.open(llama)
    places = scope(checkpoint).places
    for role in {places[name].role for name in region}:
        names = [name for name in region if places[name].role == role]
        distances = [np.abs(checkpoint.array(name) - checkpoint.array(name).mean(dtype=np.float64)) for name in names]
        every = np.concatenate([one.reshape(-1) for one in distances]).astype(np.float32)
        chosen = np.concatenate([region.mask(name).reshape(-1) for name in names])
        wanted = int(0.02 * every.size)
        assert chosen.sum() == wanted
        assert wanted == 0 or every[chosen].min() >= np.sort(every)[-wanted]


def test_a_kind_of_region_is_narrowed_combined_and_operated_on(run: Path, llama: Path) -> None:
    few = Region.load(run / "regions" / "few.region.safetensors")
    assert {name: few.indices(name).tolist() for name in few} == {
        f"model.layers.{layer}.mlp.up_proj.weight": [0, 1, 2] for layer in (0, 1)
    }
    spread = Region.load(run / "regions" / "spread.region.safetensors")
    assert Region.load(run / "regions" / "both.region.safetensors") == few | spread
    before, after = load_file(llama / "model.safetensors"), load_file(run / "variants/negated/model.safetensors")
    for name, values in before.items():
        expected = values.copy().reshape(-1)
        expected[few.indices(name) if name in few else []] *= -1
        assert np.array_equal(after[name].reshape(-1), expected)


def test_a_measurement_is_its_definition_and_stands_beside_the_base(
    run: Path, llama: Path, recipe: Callable[..., Path]
) -> None:
    """In the report and on the page, by the model of transformers, whose tokens are predicted from their windows."""
    import transformers

    from surgeon.text.windows import beginning, evaluation_windows, tokenize

    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    shares: dict[str, dict[str, float]] = {}
    for name, folder in {"base": llama, "negated": run / "variants/negated"}.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for language in ("de", "fr"):
            tokens = tokenize(tokenizer, plan_recipe(recipe()).corpus.text(language).evaluate)
            hits: list[bool] = []
            for window in evaluation_windows(tokens, beginning(tokenizer), 40, 16, 16)[0]:
                likeliest = model(torch.tensor([window.inputs])).logits[0, -len(window.labels) :].topk(5).indices
                hits += [label in row for label, row in zip(window.labels, likeliest.tolist(), strict=True)]
            shares.setdefault(name, {})[language] = sum(hits) / len(hits)
    item = Report.load(run).measurements["hits"]
    assert {name: {k: v["hits"].value for k, v in row.items()} for name, row in item.found.items()} == shares
    changes = {language: shares["negated"][language] - shares["base"][language] for language in ("de", "fr")}
    assert item.found["negated"]["de"]["hits"].change == changes["de"]
    assert item.overall["negated"]["hits"].change == pytest.approx(sum(changes.values()) / 2)
    assert "Own token among the 5 likeliest" in (run / "report.html").read_text()


def test_words_of_such_kinds_are_told(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["regions"]["few"]["origin"] == "first"
    assert "the first 3 entries of every tensor" in (run / "variants/negated/README.md").read_text()


def test_a_name_that_is_taken_and_a_package_that_is_broken_are_told(tmp_path: Path) -> None:
    for point, words in (("zero = extras:Negate", "the name is taken"), ("x = nowhere:X", "ModuleNotFoundError")):
        folder = tmp_path / words.split()[0] / "other-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[surgeon.operations]\n{point}\n")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder.parent), str(PACKAGE.parent)])}
        command = [sys.executable, "-m", "surgeon", "plan", "zero_core"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("group", OWN)
def test_every_kind_is_named_as_recipes_name_it(group: str) -> None:
    for name, kind in kinds(group).items():
        if group == "surgeon.scores":
            assert kind.model_fields["kind"].annotation.__args__ == (name,)
        if group == "surgeon.regions":
            assert kind.key == name
        if group in ("surgeon.operations", "surgeon.measurements"):
            assert kind.kind == name
