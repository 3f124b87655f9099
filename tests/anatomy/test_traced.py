"""Where conversions put each entry: the stand-ins' answer beside what the same operations do to numbered entries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from surgeon.anatomy import slots
from surgeon.anatomy.slots import Slot, _lay, _slots
from surgeon.anatomy.traced import Traced, Untraceable

Shapes = tuple[tuple[int, ...], ...]


def halves(a: Any) -> Any:
    return a.reshape([2, 3, 2, 4]).transpose(1, 2).reshape(a.shape).contiguous()


# Each: what a conversion does, the shapes that it takes, in how many pieces each tensor comes to lie, and whether its
# first tensor stays one run of a parameter.
CASES: dict[str, tuple[Callable[..., Any], Shapes, list[int], bool]] = {
    "turned over": (lambda a: a.transpose(0, 1).contiguous(), ((3, 4),), [1], False),
    "experts turned over": (lambda a: torch.transpose(a, dim0=1, dim1=2), ((2, 3, 4),), [1], False),
    "cut in two": (lambda a: torch.chunk(a, 2, dim=0), ((6, 4),), [2], False),
    "cut unevenly": (lambda a: torch.split(a, [1, 5], dim=0), ((6, 4),), [2], False),
    "cut across": (lambda a: torch.chunk(a, 2, dim=-1), ((3, 4),), [2], False),
    "experts stacked": (
        lambda a, b, c, d: torch.cat([torch.stack([a, b]), torch.stack([c, d])], dim=1), ((3, 4),) * 4, [1] * 4, True,
    ),
    "side by side": (lambda a, b: torch.cat([a, b], dim=1), ((3, 4), (3, 2)), [1, 1], False),
    "every second row first": (halves, ((2, 6, 4),), [2], False),
    "every second row, cut": (lambda a: torch.chunk(halves(a), 2, dim=1), ((2, 6, 4),), [2], False),
    "rotary pairs": (lambda a: a.view(2, 2, 3, 4).transpose(1, 2).reshape(12, -1), ((12, 4),), [6], False),
    "rotary pairs of a bias": (lambda a: a.view(2, 2, 3).transpose(1, 2).reshape(12), ((12,),), [6], False),
    "apart": (lambda a: [part.squeeze(0) for part in torch.chunk(a, 3, dim=0)], ((3, 4, 5),), [3], False),
    "an axis more": (lambda a: a.unsqueeze(1), ((3, 4),), [1], True),
    "permuted": (lambda a: a.permute(2, 0, 1), ((3, 4, 5),), [1], False),
}  # fmt: skip


def slots_of(
    convert: Callable[..., Any], shapes: Shapes
) -> tuple[dict[str, Slot], list[torch.Tensor], list[torch.Tensor]]:
    """Return the slots, numbered tensors, and what they are converted to."""
    names = [f"t{number}" for number in range(len(shapes))]
    numbered = [torch.arange(1.0, 1 + math.prod(s)).view(s) + 1000 * i for i, s in enumerate(shapes)]
    real, found = convert(*numbered), convert(*map(Traced.stored, range(len(shapes)), shapes))
    made, stand_ins = (list(it) if isinstance(it, list | tuple) else [it] for it in (real, found))
    assert [tuple(one.shape) for one in stand_ins] == [tuple(one.shape) for one in made]
    parameters = {str(i): torch.nn.Parameter(value.clone(), requires_grad=False) for i, value in enumerate(made)}
    outputs = {str(i): value for i, value in enumerate(stand_ins)}
    found_slots = _slots(_lay(outputs, shapes), names, dict(zip(names, shapes, strict=True)), parameters)
    return found_slots, numbered, list(parameters.values())


@pytest.mark.parametrize("case", CASES)
def test_a_slot_finds_every_entry_where_the_conversion_put_it(case: str) -> None:
    convert, shapes, pieces, run = CASES[case]
    found, numbered, _ = slots_of(convert, shapes)
    assert [len(slot.pieces) for slot in found.values()] == pieces
    assert (found["t0"].offset is not None) == run
    for slot, tensor in zip(found.values(), numbered, strict=True):
        assert torch.equal(slot.values(), tensor)
        at = torch.tensor([1, tensor.numel() - 1])
        slot.set(at, torch.tensor([-1.0, -2.0]))
        tensor.view(-1)[at] = torch.tensor([-1.0, -2.0])
        assert torch.equal(slot.values(), tensor)


def test_what_is_set_reaches_the_model_as_the_conversion_of_the_changed_tensor_would() -> None:
    for convert, shapes, _, _ in CASES.values():
        found, numbered, parameters = slots_of(convert, shapes)
        at = torch.tensor([0, 2, 5])
        found["t0"].set(at, torch.full((3,), -7.0))
        numbered[0].view(-1)[at] = -7.0
        wanted = convert(*numbered)
        made = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
        assert all(map(torch.equal, parameters, made))


def test_what_is_not_followed_or_lost_has_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Untraceable):
        torch.flip(Traced.stored(0, (3, 4)), [0])
    assert not slots_of(lambda a: torch.chunk(a, 2, dim=0)[0], ((6, 4),))[0]  # half of it is nowhere
    monkeypatch.setattr(slots, "_MOST_PIECES", 5)
    assert not slots_of(*CASES["rotary pairs"][:2])[0]
