"""The forms in which frozen places are kept, against numpy; and when gradients are clean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.checkpoint import checkpoint

from surgeon.errors import FreezeError
from surgeon.freeze import freeze
from surgeon.freeze.entries import bits, encode
from surgeon.region.region import Region

CPU = torch.device("cpu")
SHAPE = (300, 501)  # an odd number of entries: the last byte of a mask is not full


def _random(count: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(0).choice(math.prod(SHAPE), count, replace=False))


def _crossing(rows: list[int], columns: list[int]) -> NDArray[np.int64]:
    mask = np.zeros(SHAPE, dtype=np.bool_)
    mask[np.ix_(rows, columns)] = True
    return np.flatnonzero(mask)


# What each set is kept as: numbers of rows, numbers of entries, or bits.
FORMS: dict[str, tuple[str, NDArray[np.int64]]] = {
    "nothing": ("entries", np.empty(0, dtype=np.int64)),
    "one": ("entries", np.array([150_299])),
    "everything": ("rows", np.arange(math.prod(SHAPE))),
    "a span": ("bits", np.arange(700, 90_000)),
    "rows": ("rows", _crossing([3, 4, 200], list(range(501)))),
    "as many entries as rows have": ("entries", np.arange(1, 1 + 3 * 501)),
    "columns": ("entries", _crossing(list(range(300)), [0, 77, 500])),
    "sparse": ("entries", _random(7_515)),
    "dense": ("bits", _random(75_150)),
    "all but one": ("bits", np.delete(np.arange(math.prod(SHAPE)), 70_000)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_reads_writes_and_clears_the_same_places(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgeon.freeze.entries._PIECES", {"cpu": 4096})  # a tensor of several pieces
    kind, indices = FORMS[name]
    entries = encode(indices, SHAPE, CPU)
    assert ("bits" if entries.is_packed else "entries" if entries.unit == 1 else "rows") == kind
    assert np.array_equal(entries.indices().numpy(), indices)
    flat = torch.randn(math.prod(SHAPE)).to(dtype)
    before = bits(flat.clone()).numpy()
    assert np.array_equal(bits(entries.select(flat)).numpy(), before[indices])
    values = bits(torch.randn(indices.size).to(dtype))
    entries.write(flat, values.view(dtype))
    expected = before.copy()
    expected[indices] = values.numpy()
    assert np.array_equal(bits(flat).numpy(), expected)
    entries.clear(flat)
    expected[indices] = 0
    assert np.array_equal(bits(flat).numpy(), expected)


def test_clearing_leaves_no_nan_and_no_negative_zero() -> None:
    for _, indices in FORMS.values():
        flat = torch.full((math.prod(SHAPE),), float("nan"))
        flat[::2] = -0.0
        before = bits(flat.clone())
        encode(indices, SHAPE, CPU).clear(flat)
        assert not bits(flat)[indices].any()
        outside = np.setdiff1d(np.arange(flat.numel()), indices)
        assert torch.equal(bits(flat)[outside], before[outside])


class Chain(torch.nn.Module):
    """Three layers; `hook` is called in the backward pass between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
        self.hook: Callable[[Any], Any] | None = None
        self.passed = 0

    def forward(self, inputs: torch.Tensor, reentrant: bool = False) -> torch.Tensor:
        for layer in self.layers:
            inputs = checkpoint(layer, inputs, use_reentrant=True) if reentrant else layer(inputs)
            if self.hook is not None:
                inputs.register_hook(self.hook)
        return inputs.square().sum()


def _frozen_chain() -> tuple[Chain, torch.optim.Optimizer, Callable[[], tuple[float, float]]]:
    torch.manual_seed(0)
    model = Chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    indices = {name: np.arange(0, math.prod(shape), 3) for name, shape in shapes.items()}
    freeze(model, Region.from_indices(indices, shapes), optimizer)

    def gradients() -> tuple[float, float]:
        inside = outside = 0.0
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            flat = parameter.grad.reshape(-1).abs()
            inside += float(flat[indices[name]].sum())
            outside += float(flat.sum()) - float(flat[indices[name]].sum())
        return inside, outside

    return model, optimizer, gradients


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_clean_when_the_backward_pass_returns(reentrant: bool) -> None:
    model, optimizer, gradients = _frozen_chain()
    for _ in range(3):
        model(torch.randn(4, 8).requires_grad_(), reentrant).backward()
        model(torch.randn(4, 8).requires_grad_(), reentrant).backward()  # accumulated
        inside, outside = gradients()
        assert inside == 0.0 < outside
        optimizer.step()
        optimizer.zero_grad()


def test_a_backward_pass_that_failed_leaves_nothing_undone() -> None:
    model, optimizer, gradients = _frozen_chain()

    def fail_once(gradient: torch.Tensor) -> None:
        model.passed += 1
        if model.passed == 2:
            raise RuntimeError("out of memory")

    for again in (True, False):
        model(torch.randn(4, 8)).backward()
        model.hook, model.passed = fail_once, 0
        with pytest.raises(RuntimeError, match="out of memory"):
            model(torch.randn(4, 8)).backward()
        model.hook = None
        assert gradients()[0] > 0.0  # else this test shows nothing
        if again:
            model(torch.randn(4, 8)).backward()
            assert gradients()[0] == 0.0 < gradients()[1]
        optimizer.step()
        assert gradients()[0] == 0.0 < gradients()[1]
        optimizer.zero_grad()


def test_a_gradient_that_cannot_be_cleaned_is_an_error_of_the_backward_pass() -> None:
    table = torch.nn.Embedding(16, 4, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    freeze(table, Region.from_indices({"weight": np.array([1, 5])}, {"weight": (16, 4)}), optimizer)
    with pytest.raises(FreezeError, match="sparse=False"):
        table(torch.tensor([1, 2])).sum().backward()
