"""While one layer is computed with, the next one is read: tried with a copy that is slow, and with one that waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from surgeon.anatomy.slots import Names, Origin
from surgeon.model import budgets
from surgeon.model.weights import Weights

LAYERS, SECONDS = 12, 0.02


def weights_of(
    read: Callable[[str], torch.Tensor], looks_ahead: bool
) -> tuple[list[list[torch.nn.Parameter]], Weights]:
    model = torch.nn.ModuleList(torch.nn.Linear(2, 2, bias=False) for _ in range(LAYERS))
    names = [f"{i}.weight" for i in range(LAYERS)]
    origins = {name: Origin(name, None, [("", name)]) for name in names}
    weights = Weights(model, Names(origins, {}), read, "cpu", looks_ahead)
    return [[*layer.parameters()] for layer in model] + [[]], weights


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "resident_bytes", lambda device="cpu": 0)


def test_the_next_layer_is_read_while_one_is_in_use_and_no_other() -> None:
    done = {f"{i}.weight": threading.Event() for i in range(LAYERS)}

    def read(name: str) -> torch.Tensor:
        done[name].set()
        return torch.full((2, 2), float(name.split(".")[0]))

    units, weights = weights_of(read, looks_ahead=True)
    for number in range(LAYERS):
        with weights.resident(units[number], units[number + 1]):
            assert float(units[number][0].detach().max()) == number
            if number + 1 < LAYERS:
                assert done[f"{number + 1}.weight"].wait(20)
            assert not any(done[f"{later}.weight"].is_set() for later in range(number + 2, LAYERS))
        assert bool(units[number][0].detach().isnan().all())


def test_a_slow_copy_hides_behind_the_arithmetic() -> None:
    def read(name: str) -> torch.Tensor:
        time.sleep(SECONDS)
        return torch.zeros(2, 2)

    def seconds(looks_ahead: bool) -> float:
        units, weights = weights_of(read, looks_ahead)
        started = time.perf_counter()
        for number in range(LAYERS):
            with weights.resident(units[number], units[number + 1]):
                time.sleep(SECONDS)  # the arithmetic
        return time.perf_counter() - started

    assert min(seconds(True) / seconds(False) for _ in range(3)) < 0.6  # of three, since the machine may be busy
