"""Every format beside its definition: what is decoded, what an edit changes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ModelMaker
from definitions import DEFINITIONS, Definition, Tensors
from quantizing import written
from safetensors.torch import load_file

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Coded
from surgeon.errors import CheckpointError, InputError
from surgeon.formats import blocks

MODULE = "model.layers.1.self_attn.k_proj"
NAME = f"{MODULE}.weight"


@pytest.fixture(scope="module")
def plain(make_model: ModelMaker) -> Path:
    return make_model("llama", dtype="bfloat16")


def quantized(plain: Path, folder: Path, definition: Definition, **changed: torch.Tensor) -> Path:
    tensors = load_file(plain / "model.safetensors")
    made = {f"{MODULE}.{end}": tensor for end, tensor in definition.encode(tensors.pop(NAME)).items()}
    return written(plain, folder, {**tensors, **made, **changed}, definition.settings)


@pytest.fixture(params=DEFINITIONS, scope="module")
def case(
    request: pytest.FixtureRequest, plain: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Definition, Checkpoint, Coded, Tensors]:
    definition = DEFINITIONS[request.param]
    opened = Checkpoint.open(quantized(plain, tmp_path_factory.mktemp("format") / "model", definition))
    info = opened.tensors[NAME]
    assert isinstance(info, Coded)
    return definition, opened, info, stored_of(info, opened)


def stored_of(info: Coded, opened: Checkpoint) -> Tensors:
    files = {part.path for part in info.parts.values()}
    every = {name: tensor for file in files for name, tensor in load_file(str(file)).items()}
    return {name.removeprefix(f"{MODULE}."): tensor for name, tensor in every.items() if name.startswith(f"{MODULE}.")}


def by_definition(definition: Definition, tensors: Tensors, shape: tuple[int, ...]) -> torch.Tensor:
    found = [[definition.decode(tensors, i, j) for j in range(shape[1])] for i in range(shape[0])]
    return torch.tensor(found, dtype=torch.float32).to(torch.bfloat16)


def with_edits(info: Coded, made: object, tensors: Tensors) -> Tensors:
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, edit in made.stored.items():  # type: ignore[attr-defined]
        flat = changed[name.removeprefix(f"{MODULE}.")].reshape(-1)
        size = flat.element_size()
        data = flat.view(torch.uint8).reshape(-1, size)
        data[torch.from_numpy(edit.indices)] = torch.from_numpy(edit.values.view(np.uint8).reshape(-1, size).copy())
    return changed


def bits(values: object) -> np.ndarray:
    return (values.view(torch.int16).numpy() if isinstance(values, torch.Tensor) else values.view(np.int16)).reshape(-1)  # type: ignore[attr-defined]


def test_decoding_follows_the_definition_to_the_bit(
    case: tuple[Definition, Checkpoint, Coded, Tensors], plain: Path
) -> None:
    definition, opened, info, tensors = case
    assert {name: (one.shape, one.dtype) for name, one in opened.tensors.items()} == {
        name: (one.shape, one.dtype) for name, one in Checkpoint.open(plain).tensors.items()
    }
    flat = bits(by_definition(definition, tensors, info.shape))
    assert np.array_equal(bits(opened.array(NAME)), flat)
    some = np.unique(np.random.default_rng(0).integers(0, info.numel, 50))
    assert np.array_equal(bits(opened.entries(NAME, some)), flat[some])
    for low, high in ((0, 1), (31, 33), (17, 270), (info.numel - 5, info.numel)):
        assert np.array_equal(bits(opened.span(info, low, high)), flat[low:high])


def test_zeroing_changes_those_codes_and_no_other_bit(case: tuple[Definition, Checkpoint, Coded, Tensors]) -> None:
    definition, opened, info, tensors = case
    chosen = np.sort(np.random.default_rng(1).choice(info.numel, 15, replace=False))
    made = info.codec.encode(info, opened, chosen, np.zeros(chosen.size))
    assert set(made.stored) <= {f"{MODULE}.{definition.codes}"}
    assert not made.rounding.rounded
    assert not made.rounding.rescaled
    expected = by_definition(definition, tensors, info.shape).reshape(-1)
    expected[torch.from_numpy(chosen)] = 0
    assert np.array_equal(bits(by_definition(definition, with_edits(info, made, tensors), info.shape)), bits(expected))
    assert np.array_equal(bits(made.values), bits(expected)[made.indices])


@pytest.mark.parametrize("factor", [0.7, -0.4, 1.9])
def test_other_values_get_the_nearest_codes_and_what_it_costs_is_told(
    case: tuple[Definition, Checkpoint, Coded, Tensors], factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition, opened, info, tensors = case
    before = by_definition(definition, tensors, info.shape).reshape(-1).double().numpy()
    chosen = np.sort(np.random.default_rng(2).choice(info.numel, 60 if factor == 1.9 else 12, replace=False))
    wanted = before.copy()
    wanted[chosen] = before[chosen] * factor
    try:
        made = info.codec.encode(info, opened, chosen, wanted[chosen])
    except InputError:  # a scale that cannot grow
        assert factor == 1.9
        return
    after = by_definition(definition, with_edits(info, made, tensors), info.shape).reshape(-1)
    changed = np.flatnonzero(bits(after) != bits(torch.from_numpy(before).to(torch.bfloat16)))
    assert set(changed) <= set(made.indices)
    assert np.array_equal(bits(made.values), bits(after)[made.indices])
    error = np.abs(after.double().numpy() - wanted)
    assert made.rounding.largest == error.max()
    assert made.rounding.norm == pytest.approx(np.sqrt((error**2).sum()))
    assert made.rounding.rounded == np.count_nonzero(error)
    if (
        not made.rounding.rescaled
    ):  # no other code is nearer: the values around are no nearer than the one that was made
        levels = np.unique(np.abs(before))
        assert set(changed) <= set(chosen)
        assert factor < 0 or made.rounding.largest <= np.diff(levels).max()
        return
    # The same some entries at a time, where codes of several parts share a byte or word.
    monkeypatch.setattr(blocks, "AT_ONCE", 50)
    parts = info.codec.encode(info, opened, chosen, wanted[chosen])
    assert np.array_equal(parts.indices, made.indices)
    assert np.array_equal(bits(parts.values), bits(made.values))
    assert parts.stored.keys() == made.stored.keys()
    for name, edit in made.stored.items():
        assert np.array_equal(parts.stored[name].indices, edit.indices)
        assert parts.stored[name].values.tobytes() == edit.values.tobytes()
    assert parts.rounding.rounded == made.rounding.rounded
    assert parts.rounding.norm == pytest.approx(made.rounding.norm)


def test_what_it_is_keeps_every_byte(case: tuple[Definition, Checkpoint, Coded, Tensors]) -> None:
    _, opened, info, _ = case
    every = np.arange(info.numel)
    made = info.codec.encode(info, opened, every, opened.array(NAME).reshape(-1).astype(np.float64))
    assert not made.stored
    assert not made.rounding.blocks


HOSTILE = ["missing", "shape", "not a number", "negative", "another format"]


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("kind", DEFINITIONS)
def test_what_does_not_fit_is_one_message(kind: str, what: str, plain: Path, tmp_path: Path) -> None:
    definition = DEFINITIONS[kind]
    tensors = load_file(plain / "model.safetensors")
    made = definition.encode(tensors.pop(NAME))
    settings = dict(definition.settings)
    scales = made[definition.scales]
    if what == "missing":
        del made[definition.scales]
    elif what == "shape":
        made[definition.scales] = torch.cat([scales.reshape(-1), scales.reshape(-1)[:1]])
    elif what == "another format":
        settings["quant_method"] = "hqq"
    elif scales.dtype == torch.uint8:  # exponents: 255 is no number
        scales.reshape(-1)[0] = 255
    else:
        scales.view(torch.int8 if scales.element_size() == 1 else scales.dtype).reshape(-1)[0] = (
            127 if scales.element_size() == 1 else float("nan") if what == "not a number" else -1.0
        )
    if "nested" in kind and what in ("not a number", "negative"):
        made["weight.nested_absmax"][0] = float("nan")
    folder = written(plain, tmp_path / "broken", {**tensors, **{f"{MODULE}.{e}": t for e, t in made.items()}}, settings)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder).array(NAME)
    assert MODULE in str(caught.value)
    assert "\n" not in str(caught.value)


def test_groups_that_are_not_there_are_refused(plain: Path, tmp_path: Path) -> None:
    definition = DEFINITIONS["gptq-act-order"]
    order = definition.encode(load_file(plain / "model.safetensors")[NAME])["g_idx"]
    for wrong in (99, -1):
        order[3] = wrong
        folder = quantized(plain, tmp_path / f"{wrong}", definition, **{f"{MODULE}.g_idx": order})
        with pytest.raises(CheckpointError, match="into group"):
            Checkpoint.open(folder).array(NAME)
