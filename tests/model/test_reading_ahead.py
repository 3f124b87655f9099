"""While one thing is computed with, the next one comes: tried with copies that are slow, and with one that waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.anatomy.slots import Names, Origin
from surgeon.model import budgets
from surgeon.model import device as transfers
from surgeon.model.arithmetic import repeatable
from surgeon.model.hidden_states import States
from surgeon.model.model import Weights

LAYERS, SECONDS = 10, 0.02


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


def hides(seconds: Callable[[bool], float]) -> bool:
    """Time with overlap is far less than without, in one of three tries, since the machine may be busy."""
    return any(seconds(True) / seconds(False) < 0.6 for _ in range(3))


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

    assert hides(seconds)


def test_hidden_states_that_lie_elsewhere_come_and_go_behind_the_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: (time.sleep(SECONDS / 2), real(*given))[1]

    for name in ("_store", "_bring"):
        monkeypatch.setattr(States, name, slow(getattr(States, name)))

    def seconds(away: bool) -> float:
        states = States([(1, 1)] * LAYERS, torch.float32, tmp_path if away else None, device="cpu")
        for batch in range(LAYERS):
            states.put(0, batch, torch.tensor([[float(batch)]]))
        states.flush(0)
        started = time.perf_counter()
        for batch in range(LAYERS):
            before = states.get(0, batch)
            time.sleep(SECONDS)  # the arithmetic
            states.put(1, batch, before + 1)
        taken = time.perf_counter() - started
        assert [float(states.get(1, batch)) for batch in range(LAYERS)] == [batch + 1 for batch in range(LAYERS)]
        return taken

    assert hides(seconds)


def test_a_gpu_s_copies_begin_after_the_arithmetic_they_need_and_are_complete_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Told by streams that stand in for a GPU's and note what they are asked."""
    asked: list[tuple[str, ...]] = []

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = "arithmetic" if name == "arithmetic" else "copies"

        def record_event(self) -> str:
            asked.append((self.name, "reached"))
            return "moment"

        def wait_event(self, event: str) -> None:
            asked.append((self.name, "waits for", event))

        def synchronize(self) -> None:
            asked.append((self.name, "complete"))

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        asked.append((stream.name, "copies"))
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("arithmetic"))
    monkeypatch.setattr(transfers, "_streams", {})
    states, device = States([(1, 1)] * 2, torch.float32, None), torch.device("cuda", 0)
    states._away, states._device = True, device
    monkeypatch.setattr(states, "_hold", lambda: torch.zeros(2))
    monkeypatch.setattr(states, "_bring", lambda *what: asked.append(("brought",)) or torch.ones(1, 1))
    states.put(0, 1, torch.zeros(1, 1))
    states.flush(0)
    copied = [
        ("arithmetic", "reached"),
        ("copies", "waits for", "moment"),
        ("copies", "copies"),
        ("copies", "complete"),
    ]
    assert asked == copied
    asked.clear()
    assert float(states.get(0, 1)) == 1.0
    assert asked == [*copied[:3], ("brought",), copied[3]]
    asked.clear()
    transfers.wait_for_arithmetic(device)
    assert asked == [("arithmetic", "complete")]


def test_a_gpu_adds_up_in_one_order_meanwhile_and_all_is_as_before_then() -> None:
    def settings() -> tuple[bool, ...]:
        return (
            torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.flash_sdp_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        )  # fmt: skip

    before = settings()
    with repeatable("cuda", 256):
        assert settings() == (True, False, False)
        with repeatable("cuda"):
            assert settings() == (True, False, False)
    assert settings() == before
    with repeatable("cuda:1", 4096):
        assert settings() == (True, before[1], False)
    assert settings() == before
    with repeatable("cpu", 256):
        assert settings() == before
