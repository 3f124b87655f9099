"""Figures kept from an earlier run are those of the very same model, edit, texts and settings, and as they were."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.store import keep_value
from surgeon.measure import verification_cache
from surgeon.measure.verification_cache import keep, kept_path, load_kept
from surgeon.model.results import Continuation, Figures, Measure, Sums, Verification
from surgeon.model.workplace import Workplace
from surgeon.operations import Scale, Zero
from surgeon.operations.edits import Surgery
from surgeon.recipe.schema import ExpectSpec, VerifySpec
from surgeon.region.region import Region

NAME = "model.layers.0.mlp.up_proj.weight"


def region(*indices: int) -> Region:
    return Region.from_indices({NAME: np.array(indices)}, {NAME: (48, 32)})


def changed_copy(source: Path, folder: Path, change: Callable[[Path], object]) -> Checkpoint:
    shutil.copytree(source, folder)
    change(folder)
    return Checkpoint.open(folder)


def one_entry(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[NAME] = tensors[NAME].copy()
    tensors[NAME][-1, -1] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def config(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "rms_norm_eps": 0.5}))


SPEC = VerifySpec(tokens=32, window=16, prompts=["a"])
GIVEN: dict[str, Any] = {
    "operations": [Zero(zero="r")], "regions": {"r": region(1, 2)}, "donors": {"d": "a" * 64},
    "texts": {"de": "b" * 64, "fr": "c" * 64}, "spec": SPEC, "precision": "float32", "device": "cpu", "jobs": 1,
}  # fmt: skip
OTHERWISE: dict[str, tuple[str, Any]] = {
    "no operation": ("operations", []),
    "another operation": ("operations", [Scale(scale="r", by=2.0)]),
    "the operation twice": ("operations", [Zero(zero="r"), Zero(zero="r")]),
    "another entry": ("regions", {"r": region(1, 3)}),
    "the donor's bytes": ("donors", {"d": "d" * 64}),
    "another donor": ("donors", {"e": "a" * 64}),
    "a text": ("texts", {"de": "b" * 64, "fr": "e" * 64}),
    "a language": ("texts", {"de": "b" * 64, "it": "c" * 64}),
    "one language less": ("texts", {"de": "b" * 64}),
    "the order, in which sums are taken": ("texts", {"fr": "c" * 64, "de": "b" * 64}),
    "tokens": ("spec", SPEC.model_copy(update={"tokens": 33})),
    "window": ("spec", SPEC.model_copy(update={"window": 15})),
    "stride": ("spec", SPEC.model_copy(update={"stride": 4})),
    "prompts": ("spec", SPEC.model_copy(update={"prompts": ["b"]})),
    "new tokens": ("spec", SPEC.model_copy(update={"new_tokens": 3})),
    "precision": ("precision", "native"),
    "device": ("device", "cuda"),
    "a card of another device": ("device", "cuda:0"),
}


def path_of(checkpoint: Checkpoint, kind: str = "perplexity", **given: Any) -> Path | None:
    surgery = Surgery(checkpoint, given["operations"], given["regions"])
    place = Workplace(given["device"], given["jobs"])
    return kept_path(surgery, given["donors"], given["texts"], given["spec"], given["precision"], place, kind)


@pytest.mark.parametrize("what", OTHERWISE)
def test_whatever_figures_depend_on_gives_them_another_name(what: str, llama: Path) -> None:
    argument, value = OTHERWISE[what]
    checkpoint = Checkpoint.open(llama)
    kind = "continuations" if what in ("prompts", "new tokens") else "divergence"
    assert path_of(checkpoint, **{**GIVEN, argument: value, "kind": kind}) != path_of(checkpoint, **GIVEN, kind=kind)
    assert path_of(checkpoint, **GIVEN) != path_of(checkpoint, **GIVEN, kind=kind)


CHANGES: dict[str, Callable[[Path], object]] = {
    "an entry": one_entry,
    "config": config,
    "tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_figures_of_another_model_have_another_name(change: str, llama: Path, tmp_path: Path) -> None:
    other = changed_copy(llama, tmp_path / "other", CHANGES[change])
    assert path_of(other, **GIVEN) != path_of(Checkpoint.open(llama), **GIVEN)


def test_versions_make_another_name(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, before = Checkpoint.open(llama), path_of(Checkpoint.open(llama), **GIVEN)
    with monkeypatch.context() as patched:
        patched.setattr(verification_cache, "KEPT_VERSION", verification_cache.KEPT_VERSION + 1)
        assert path_of(checkpoint, **GIVEN) != before
    with monkeypatch.context() as patched:
        patched.setattr(verification_cache, "library_versions", lambda: {"torch": "0.0"})
        assert path_of(checkpoint, **GIVEN) != before


def test_what_they_do_not_depend_on_keeps_the_name(llama: Path, tmp_path: Path) -> None:
    """The folder, hashing side by side, which card of a kind, what is expected of the figures, and unused regions."""
    before = path_of(Checkpoint.open(llama), **{**GIVEN, "device": "cuda:0"})
    copy = changed_copy(llama, tmp_path / "copy", lambda folder: (folder / "README.md").write_text("words"))
    expecting = SPEC.model_copy(
        update={"expect": [ExpectSpec(variant="v", ratio_at_least=2.0)], "languages": ["de", "fr"]}
    )
    again = {**GIVEN, "device": "cuda:1", "jobs": 2, "spec": expecting}
    again["regions"] = {**GIVEN["regions"], "unused": region(7)}
    assert path_of(copy, **again) == before


def test_figures_come_back_as_they_were_not_a_number_and_infinities_too(tmp_path: Path) -> None:
    measures = {
        "de": Measure(12.5, 4, 9, ((5.25, 2), (7.25, 2))),
        "fr": Measure(math.inf, 3, 7, ((math.inf, 3),)),
        "it": Measure(math.nan, 1, 2),
    }
    said = [Continuation("a", "b\nc", 3, "length"), Continuation("d", "", 0, "nan")]
    figures = {"divergence": Figures({"de": {"kl": Sums((math.nan, 1.5), (2.0, 3.0))}}, ({"a": 1},))}
    found = Verification({"cut": measures, "base": {"de": Measure(1.0, 1, 1)}}, {"cut": said}, {"cut": figures})
    again = Verification()
    for kind in ("perplexity", "continuations", "divergence"):
        keep(tmp_path / kind, "cut", found, kind)
        one = load_kept(tmp_path / kind, "another name", kind)
        assert one is not None
        again = again.joined(one)
    name = "another name"
    assert repr(again) == repr(Verification({name: measures}, {name: said}, {name: figures}))  # nan is not nan
    keep(tmp_path / "none", "base", found, "continuations")
    assert load_kept(tmp_path / "none", "base", "continuations") == Verification()


def test_a_kind_from_elsewhere_may_give_lists_and_whole_numbers(tmp_path: Path) -> None:
    sums: Any = Sums([1, 0], [1, 1])  # type: ignore[arg-type]
    figures = Figures({"de": {"hits": sums}}, [{"a": 1}])  # type: ignore[arg-type]
    with warnings.catch_warnings(action="error"):
        keep(tmp_path / "hits", "cut", Verification(figures={"cut": {"hits": figures}}), "hits")
    expected = Figures({"de": {"hits": Sums((1.0, 0.0), (1.0, 1.0))}}, ({"a": 1},))
    assert load_kept(tmp_path / "hits", "cut", "hits") == Verification(figures={"cut": {"hits": expected}})


def test_figures_that_are_damaged_or_gone_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    assert load_kept(path, "cut") is None
    keep(path, "cut", Verification({"cut": {"de": Measure(1.0, 1, 1)}}))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"1.0", b"1.5"))
    assert load_kept(path, "cut") is None
    path.write_bytes(whole)
    assert load_kept(path, "cut") is not None
    keep_value(path, b"[" * 1000)  # as it was written, and still nothing that is read
    assert load_kept(path, "cut") is None
