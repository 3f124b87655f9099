"""Regions selected while the scores are made, without score files, are those selected from whole scores."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ModelMaker, with_pictures
from forking import program_forked

import surgeon
from surgeon.checkpoint.store import cache_folder
from surgeon.region.region import Region
from surgeon.regions import scopes
from surgeon.scores.score_pass import ScorePass

SCORE = "{kind: %s, languages: [de, fr], samples: 5, sequence_length: 24, batch_size: 2}"
REGIONS = """\
  core: {score: SCORE, select: {top: 0.03}}
  bottom: {from: core, select: {bottom: 0.03}}
  german: {from: core, select: {top: 0.05, monolingual: de}}
  by-layer: {from: core, select: {top: 0.02, scope: layer}}
  by-output: {from: core, select: {top: 0.1, scope: output}, include: [mlp]}
  everywhere: {from: core, select: {top: 0.02, scope: global}}
  nowhere: {from: core, select: {bottom: 0.02, scope: global}, exclude: [norm]}
  german-everywhere: {from: core, select: {top: 0.02, scope: global, monolingual: de}}
  low: {control: {of: core, draw: bottom}}
  low-by-norm: {control: {of: by-layer, draw: bottom, matched: l2}}
  columns: {from: core, select: {top: 0.5, unit: column, by: l2}, exclude: [norm]}
  neurons: {from: core, select: {top: 0.1, unit: neuron, scope: layer, monolingual: de}, include: [mlp]}
  german-neurons: {from: core, select: {top: 0.3, unit: neuron, scope: global, specific: de}, include: [mlp]}
  head: {from: core, select: {top: 0.05}, include: [embed, head, final_norm]}
"""


def recipe(folder: Path, model: Path, texts: dict[str, str], kind: str, regions: str = REGIONS) -> Path:
    path = folder / f"{kind}.yaml"
    regions = regions.replace("SCORE", SCORE % kind)
    if kind == "wanda":
        regions = regions.replace("[embed, head, final_norm]", "[head]")
    path.write_text(f"""\
version: 1
name: r
model: {model}
corpus: {{de: {texts["de"]}, fr: {texts["fr"]}}}
regions:
{regions}
output: {folder / "out"}
""")
    return path


def regions_below(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "regions").glob("*.safetensors"))}


@pytest.mark.parametrize("kind", ["grad_param", "wanda"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_same_bytes_with_and_without_score_files(
    family: str,
    kind: str,
    make_model: ModelMaker,
    texts: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = recipe(tmp_path, make_model(family, tie_word_embeddings=False), texts, kind)
    surgeon.score(path, output=tmp_path / "kept")
    assert len(list((cache_folder() / "scores").glob("*.safetensors"))) == 2
    monkeypatch.setenv("SURGEON_CACHE", str(with_pictures(tmp_path / "other")))
    monkeypatch.setattr("surgeon.plan.needs.SHARE_OF_DISK", 0.0)
    surgeon.apply(path, output=tmp_path / "streamed")
    assert not (cache_folder() / "scores").exists()
    assert list((cache_folder() / "scratch").iterdir()) == []
    kept, streamed = regions_below(tmp_path / "kept"), regions_below(tmp_path / "streamed")
    assert len(kept) == 14
    assert kept == streamed
    assert all(Region.load(path).entries for path in (tmp_path / "kept" / "regions").iterdir())


@pytest.mark.parametrize("kind", ["grad_param", "wanda"])
def test_scores_that_stay_on_a_device_give_the_same_bytes(
    kind: str, make_model: ModelMaker, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There they are torch's, and all but whole units and controls is cut without a copy to numpy."""
    real, cut_there = ScorePass.run, set[type]()
    select_count, in_outputs = scopes.select_count, scopes.select_in_outputs

    def as_torch(*args: Any) -> Iterator[tuple[int, str, dict[str, torch.Tensor]]]:
        for unit, language, scores in real(*args):
            yield unit, language, {name: torch.from_numpy(array) for name, array in scores.items()}

    def noted(scores: Any, group: Any, wanted: int, kind: Any) -> Any:
        cut_there.update(type(scores(name)) for name, _ in group)
        return select_count(scores, group, wanted, kind)

    def noted_in_outputs(name: str, scores: Any, *rest: Any) -> Any:
        cut_there.add(type(scores))
        return in_outputs(name, scores, *rest)

    monkeypatch.setattr(scopes, "select_count", noted)
    monkeypatch.setattr(scopes, "select_in_outputs", noted_in_outputs)
    monkeypatch.setattr("surgeon.plan.needs.SHARE_OF_DISK", 0.0)
    path = recipe(tmp_path, make_model("llama", tie_word_embeddings=False), texts, kind)
    for name, run in (("numpy", real), ("torch", as_torch)):
        monkeypatch.setenv("SURGEON_CACHE", str(with_pictures(tmp_path / f"cache-{name}")))
        monkeypatch.setattr(ScorePass, "run", run)
        surgeon.apply(path, output=tmp_path / name)
        assert cut_there == {np.ndarray if name == "numpy" else torch.Tensor}
        cut_there.clear()
    assert regions_below(tmp_path / "numpy") == regions_below(tmp_path / "torch")


def test_regions_without_scores_are_found_again(
    llama: Path, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run needs no model; one more region on the same scores needs them all again."""
    monkeypatch.setattr("surgeon.plan.needs.SHARE_OF_DISK", 0.0)
    path = recipe(tmp_path, llama, texts, "grad_param", "  core: {score: SCORE, select: {top: 0.03}}\n")
    first = surgeon.apply(path, output=tmp_path / "one")
    with monkeypatch.context() as patched:
        patched.setattr("surgeon.model.model.load_model", lambda *args: pytest.fail("the model was built"))
        second = surgeon.apply(path, output=tmp_path / "two")
    assert regions_below(tmp_path / "one") == regions_below(tmp_path / "two")
    assert first.scores == second.scores


def test_damaged_scores_and_regions_are_made_again(llama: Path, texts: dict[str, str], tmp_path: Path) -> None:
    path = recipe(tmp_path, llama, texts, "grad_param", "  core: {score: SCORE, select: {top: 0.03}}\n")
    surgeon.score(path, output=tmp_path / "one")
    for kind in ("scores", "regions"):
        for file in (cache_folder() / kind).glob("*.safetensors"):
            data = bytearray(file.read_bytes())
            data[-40:] = bytes(40)
            file.write_bytes(data)
    surgeon.score(path, output=tmp_path / "two")
    assert regions_below(tmp_path / "one") == regions_below(tmp_path / "two")


# Each run is a fork. Prints their exit codes.
KILLED = """
import json, os, sys
import torch, transformers, surgeon, surgeon.model.model, surgeon.model.layer_stack, surgeon.run
import surgeon.scores.score_pass
from surgeon.model import budgets
from surgeon.plan import needs
from surgeon.scores import score_pass
recipe, share, runs = sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3])
budgets.HIDDEN_BYTES = 0
needs.SHARE_OF_DISK = share
note, left = score_pass.Scratch.note, [0]
def counted(self, progressed, kept):
    note(self, progressed, kept)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), 9)
score_pass.Scratch.note = counted
surgeon.run.write_page = lambda report, output: []  # regions are what is looked at
codes = []
for output, cache, steps in runs:
    child = os.fork()
    if not child:
        os.environ["SURGEON_CACHE"], left[0] = cache, steps
        surgeon.apply(recipe, output=output)
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_killed_sweep_goes_on_at_its_layer(
    share: float, make_model: ModelMaker, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process gets one step further and is killed; what was done is not done again; the bytes are the same."""
    regions = "".join(line + "\n" for line in REGIONS.splitlines() if "where" not in line and "head" not in line)
    path = recipe(tmp_path, make_model("llama"), texts, "grad_param", regions)

    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    # A layer forward, the second and the heads, a layer backward, the other one: each run gets one step further.
    other = str(with_pictures(tmp_path / "other"))
    runs = [(whole, str(cache_folder()), -1), *[(killed, other, steps) for steps in (1, 1, 1, 1, -1)]]
    done = program_forked(KILLED, path, share, json.dumps(runs))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, *[-signal.SIGKILL] * 4, 0], done.stderr
    assert regions_below(tmp_path / "killed") == regions_below(tmp_path / "whole")
    monkeypatch.setenv("SURGEON_CACHE", str(with_pictures(tmp_path / "other")))
    assert list((cache_folder() / "scratch").iterdir()) == []
