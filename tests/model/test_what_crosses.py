"""What is copied between a device and the host, counted with a second device that stands in for a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ModelMaker
from measured import measure_variants
from second_device import DEVICE, SecondDevice, There

from surgeon.anatomy.slots import Slot
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.measure.perplexity import evaluation_texts
from surgeon.model import budgets
from surgeon.model.editing import Variant
from surgeon.model.hidden_states import States
from surgeon.model.model import Weights
from surgeon.model.workplace import Workplace
from surgeon.operations import Zero
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region
from surgeon.region.select import encode_chosen, select_count
from surgeon.scores.grad_param import GradParam
from surgeon.scores.score_pass import ScorePass
from surgeon.text.corpora import Corpus, FileLocation

TEXTS = {name: [[(7 * row + 3 * i + 2) % 250 for i in range(24)] for row in range(3)] for name in ("de", "fr")}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SecondDevice]:
    made, tensor = SecondDevice(), torch.tensor
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device=None: False)  # which knows no such device
    monkeypatch.setattr(torch, "tensor", lambda *args, device=None, **more: tensor(*args, **more).to(device or "cpu"))
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # in which wrapped tensors have no views
    for owner, name in ((Weights, "_fetch"), (States, "_store"), (States, "_bring"), (Slot, "set")):
        made.within(owner, name, monkeypatch)
    with made:
        yield made
    made.crossings.clear()


def scored(checkpoint: Checkpoint, device: str, in_one_go: bool) -> Iterator[tuple[str, str, Any]]:
    stack = Workplace(device, 1).load(checkpoint, "float32")
    tensors = [info for info in checkpoint.tensors.values() if ".layers." in info.name]
    score = GradParam(kind="grad_param", languages=list(TEXTS), batch_size=2, sequence_length=24)
    made = ScorePass(stack, TEXTS, tensors, score, Progress(), in_one_go=in_one_go)
    with made.scratch("test") as scratch:
        for _, language, scores in made.run(scratch, made.start(scratch)):
            yield from ((language, name, values) for name, values in scores.items())


@pytest.mark.parametrize("in_one_go", [True, False])
def test_scoring_brings_weights_up_as_they_are_stored_and_only_masks_down(
    in_one_go: bool, make_model: ModelMaker, device: SecondDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_one_go:
        monkeypatch.setattr(budgets, "resident_bytes", lambda device="cpu": 0)
    checkpoint = Checkpoint.open(make_model("llama", dtype="bfloat16"))
    inside = sum(info.nbytes for info in checkpoint.tensors.values() if ".layers." in info.name)
    outside = sum(info.nbytes for info in checkpoint.tensors.values()) - inside
    expected = {(language, name): values.copy() for language, name, values in scored(checkpoint, "cpu", in_one_go)}
    assert not device.crossings
    masks = 0
    for language, name, values in scored(checkpoint, DEVICE, in_one_go):
        assert isinstance(values, There)
        other = expected.pop((language, name))  # by another kernel of attention
        np.testing.assert_allclose(values.inner.numpy(), other, rtol=1e-3, atol=1e-4 * other.max())
        before, wanted = device.bytes(up=False), max(values.numel() // 100, 1)
        ((_, chosen),) = select_count({name: values}.__getitem__, [(name, values.numel())], wanted, "top")
        mask, array = encode_chosen(chosen, tuple(values.shape)), values.inner.numpy()
        ((_, expected_here),) = select_count({name: array}.__getitem__, [(name, array.size)], wanted, "top")
        assert np.array_equal(mask.flat(), expected_here)
        assert device.bytes(up=False) - before == -(-values.numel() // 8)
        masks += -(-values.numel() // 8)
    assert not expected
    assert device.bytes(up=False) == masks
    assert device.bytes(up=True, during="_store") == device.bytes(up=True, during="_bring") == 0
    fetched = device.bytes(up=True, during="_fetch")
    if in_one_go:
        assert fetched == inside + outside
    else:  # forward and back; what is outside for the layout, on the way in, and at the head
        assert 2 * inside < fetched <= 2 * inside + 3 * outside
    others = [one for one in device.crossings if one.up and one.during != "_fetch"]
    assert {one.dtype for one in others} <= {torch.int64, torch.float32, torch.uint8}  # ids; rotary frequencies
    assert sum(one.bytes for one in others if one.dtype != torch.int64) < 2000


def test_states_that_are_too_many_for_the_device_do_cross(
    make_model: ModelMaker, device: SecondDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the counts of nothing would say nothing."""
    monkeypatch.setattr(budgets, "home_of_hidden", lambda size, device, model: "cpu")
    checkpoint = Checkpoint.open(make_model("llama"))
    for _ in scored(checkpoint, DEVICE, in_one_go=False):
        pass
    assert device.bytes(up=False, during="_store") > 0 < device.bytes(up=True, during="_bring")


def test_verification_brings_down_a_few_figures_a_token(
    make_model: ModelMaker, texts: dict[str, str], device: SecondDevice
) -> None:
    checkpoint = Checkpoint.open(make_model("llama"))
    found: list[Any] = []
    for where in ("cpu", DEVICE):
        stack = Workplace(where, 1).load(checkpoint, "float32")
        corpus = Corpus("c", {language: FileLocation(Path(path)) for language, path in texts.items()})
        spec = VerifySpec(tokens=70, window=16, stride=12)
        prepared = evaluation_texts(stack.loaded.tokenizer, corpus, list(texts), spec)
        name = "model.layers.1.mlp.up_proj.weight"
        shape = checkpoint.tensors[name].shape
        region = Region.from_indices({name: np.arange(0, 900, 3)}, {name: shape})
        variants = [Variant("base"), Variant("cut", [Zero(zero="r")], {"r": region})]
        found.append(measure_variants(stack, variants, prepared, 3, Progress()))
    for name, by_language in found[0].items():
        for language, measure in by_language.items():
            assert found[1][name][language].nll == pytest.approx(measure.nll, rel=1e-5)
    assert device.bytes(up=True, during="_fetch") == sum(info.nbytes for info in checkpoint.tensors.values())
    tokens = sum(window.inputs.__len__() for text in prepared.values() for window in text.windows)
    assert 0 < device.bytes(up=False) <= 2 * 4 * tokens  # two models, a float32 each
    down = Counter(one.dtype for one in device.crossings if not one.up)
    assert set(down) == {torch.float32}
    assert device.bytes(up=True, during="set") <= 2 * 300 * (8 + 4)  # an edit's places and values, there and back
