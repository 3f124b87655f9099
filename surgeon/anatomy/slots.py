"""Where each on-disk tensor stands in the model that transformers builds, both ways.

Mostly a tensor is a parameter of its own, perhaps under another name. Experts are the exception: on disk each expert
has its own matrices, while transformers 5 holds them fused, (experts, 2 * width, hidden) and (experts, hidden, width).
Which names and conversions belong to a family is transformers' own registry's to say, and its own code converts;
what is read off here is where in the result each tensor on disk came to lie: its `Slot`. The code is run on stand-ins
that remember where they came from (`traced.py`); and the first time that a converted parameter is made, every slot is
compared with the disk by its values.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from surgeon.anatomy.traced import Box, Offsets, Traced
from surgeon.errors import CheckpointError
from surgeon.memory import memory_error

ReadTensor = Callable[[str], torch.Tensor]  # from a name on disk to the tensor
_LAYER = re.compile(r".*?\.\d+\.")  # how the names of a layer's parameters begin
_MOST_PIECES = 256  # of a tensor that is said to have a place in the model


@dataclass(frozen=True, eq=False)
class Piece:
    """A box of a model parameter, and where its entries lie in an on-disk tensor.

    `index` is applied to the parameter; the box's entry (i, j, ...) is the flat entry `base + strides[0] * i + ...`.
    """

    parameter: torch.nn.Parameter
    index: tuple[slice, ...]
    base: int
    strides: tuple[int, ...]

    def box(self, values: torch.Tensor) -> torch.Tensor:
        """Return the box as a view of a tensor of the parameter's shape."""
        return values[self.index]

    def within(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the box as a view of a tensor of the stored one's shape, which is contiguous."""
        size = [at.stop - at.start for at in self.index]
        return stored.view(-1).as_strided(size, self.strides, stored.storage_offset() + self.base)


@dataclass(frozen=True, eq=False)
class Slot:
    """The parts of model parameters that are one on-disk tensor of some shape.

    `order` is how the axes of its only piece have to be permuted to be those of the stored tensor, those of one entry
    aside; None if it lies in several pieces, or as no permutation.
    """

    pieces: tuple[Piece, ...]
    shape: tuple[int, ...]
    order: tuple[int, ...] | None

    @property
    def parameters(self) -> tuple[torch.nn.Parameter, ...]:
        """The parameters that it is a part of, or that are parts of it, each once."""
        return tuple({id(piece.parameter): piece.parameter for piece in self.pieces}.values())

    def of(self, values: Callable[[torch.nn.Parameter], torch.Tensor]) -> torch.Tensor:
        """Return what lies in the stored tensor's place in tensors of the parameters' shapes, such as gradients.

        It is a view where a view can be that: always where the slot is one piece that was moved or turned over.
        """
        if self.order is not None:
            return self.pieces[0].box(values(self.pieces[0].parameter)).permute(self.order).view(self.shape)
        parts = [(piece, piece.box(values(piece.parameter))) for piece in self.pieces]
        stored = parts[0][1].new_empty(self.shape)
        for piece, part in parts:
            piece.within(stored).copy_(part)
        return stored

    def values(self) -> torch.Tensor:
        """Return the parameters' present values, outside of autograd: a view, or a copy, see `of`."""
        return self.of(lambda parameter: parameter.detach())

    def set(self, flat: torch.Tensor, values: torch.Tensor) -> None:
        """Give entries of the stored tensor, by their flat indices, values in the model."""
        stored = self.values()
        at, given = flat.to(stored.device), values.to(stored.device, stored.dtype)
        if stored.is_contiguous():
            stored.view(-1)[at] = given
        else:
            stored[torch.unravel_index(at, self.shape)] = given
        if self.order is None:
            for piece in self.pieces:
                piece.box(piece.parameter.detach()).copy_(piece.within(stored))

    def matrix_axis(self, axis: int) -> int:
        """Return which of the two axes of a stored matrix an axis, 0 or 1, of the parameter's matrices lies on."""
        stride = self.pieces[0].strides[axis - 2]
        return axis if stride == 0 else int(stride % self.shape[1] != 0)

    @property
    def offset(self) -> int | None:
        """Flat index of its first entry in the only parameter that it is a run of, in row-major order; else None."""
        piece, shape = self.pieces[0], self.pieces[0].parameter.shape
        size = [at.stop - at.start for at in piece.index]
        partial = max((axis for axis, length in enumerate(size) if length != shape[axis]), default=-1)
        wide = [axis for axis in self.order or () if size[axis] > 1]
        if self.order is None or wide != sorted(wide) or any(length != 1 for length in size[: max(partial, 0)]):
            return None
        return sum(int(at.start) * math.prod(shape[axis + 1 :]) for axis, at in enumerate(piece.index))


@dataclass(frozen=True, eq=False)
class Origin:
    """What one or more entries of a model's state are made of: names on disk, and transformers' converter if one.

    `parts` are the source pattern and the name on disk of each tensor, in the order in which transformers takes them.
    """

    target: str
    converter: Any | None = None
    parts: list[tuple[str, str]] = field(default_factory=list)

    def values(self, read: ReadTensor, model: Any) -> dict[str, torch.Tensor]:
        """Return the entries of the model's state by name; without a converter they are the tensors as read."""
        if self.converter is None:
            return {self.target: read(self.parts[0][1])}
        converter = copy.deepcopy(self.converter)
        for pattern, name in self.parts:
            converter.add_tensor(self.target, name, pattern, read(name))
        converted = converter.convert(self.target, model=model, config=model.config)
        return {key: value[0] if isinstance(value, list) else value for key, value in converted.items()}


@dataclass(frozen=True)
class Names:
    """Names on disk and places in the model: `origins` by the state entry they make, `slots` by name on disk."""

    origins: Mapping[str, Origin]
    slots: Mapping[str, Slot]

    def missing(self, model: Any) -> list[str]:
        """Return the parameters of a model that are made of nothing on disk; of tied ones the first name."""
        made = {id(p) for path, p in model.named_parameters(remove_duplicate=False) if path in self.origins}
        return [path for path, parameter in model.named_parameters() if id(parameter) not in made]


def _plain(name: str) -> str:
    """Return a name as the model's class has it; TransformerLens' bridge puts each module into one of its own."""
    return name.replace("._original_component", "")


def map_names(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> Names:
    """Map the names and shapes on disk to a model's state, by transformers' registry; no value is looked at.

    A tensor that the model does not have, or has in another shape, is left out.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = {_plain(name): tensor for name, tensor in model.state_dict().items()}
    origins: dict[str, Origin] = {}
    for name in sorted(shapes, key=_natural):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:  # a name of the class, which a renaming fits by accident
            target, pattern = rename_source_key(name, [], [], model.base_model_prefix, state)
        if pattern is None:
            if target in state and tuple(state[target].shape) == tuple(shapes[name]):
                origins[target] = Origin(target, None, [("", name)])
        else:
            origins.setdefault(target, Origin(target, by_pattern[pattern])).parts.append((pattern, name))
    parameters = {_plain(name): item for name, item in model.named_parameters(remove_duplicate=False)}
    by_output: dict[str, Origin] = {}
    slots: dict[str, Slot] = {}
    laid: dict[Hashable, tuple[str, _Laid]] = {}
    for origin in origins.values():
        names = [name for _, name in origin.parts]
        if origin.converter is None:
            by_output[origin.target] = origin
            if origin.target in parameters:
                slots[names[0]] = _whole(parameters[origin.target])
            continue
        one = _laid_out(origin, shapes, model, state, laid)
        by_output |= dict.fromkeys(one.outputs, origin)
        slots |= _slots(one, names, shapes, parameters)
    return Names(by_output, slots)


def _whole(parameter: torch.nn.Parameter) -> Slot:
    shape = tuple(parameter.shape)
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    piece = Piece(parameter, tuple(slice(0, size) for size in shape), 0, strides)
    return Slot((piece,), shape, _order([piece], shape))


@dataclass(frozen=True, eq=False)
class _Laid:
    """How an origin's tensors lie: which entries of the model's state it makes in the right shape, and their pieces.

    By each tensor's number, those of the tensors that lie in the model as a whole: the state's entry, the index into
    it, base and strides, see `Piece`.
    """

    outputs: tuple[str, ...]
    pieces: Mapping[int, Sequence[tuple[str, tuple[slice, ...], int, tuple[int, ...]]]]

    def within(self, old: str, new: str) -> _Laid:
        """Return it for another layer, whose names begin otherwise."""

        def moved(name: str) -> str:
            return new + name.removeprefix(old) if name.startswith(old) else name

        pieces = {number: [(moved(path), *rest) for path, *rest in boxes] for number, boxes in self.pieces.items()}
        return _Laid(tuple(map(moved, self.outputs)), pieces)  # type: ignore[arg-type]


def _laid_out(
    origin: Origin,
    shapes: Mapping[str, tuple[int, ...]],
    model: Any,
    state: Mapping[str, torch.Tensor],
    known: dict[Hashable, tuple[str, _Laid]],
) -> _Laid:
    """Return how an origin's tensors lie; what is known of another layer's, of the same shapes, goes for this one."""
    numbered, wanted = _LAYER.match(origin.target), state.get(origin.target)
    layer = numbered[0] if numbered is not None else ""
    key = (
        id(origin.converter), origin.target.removeprefix(layer), wanted.shape if wanted is not None else None,
        tuple((pattern, tuple(shapes[name])) for pattern, name in origin.parts),
    )  # fmt: skip
    if key in known:
        other, laid = known[key]
        moved = laid.within(other, layer)
        pairs = zip(laid.outputs, moved.outputs, strict=True)
        if all(new in state and state[new].shape == state[old].shape for old, new in pairs):
            return moved
    outputs = _outputs(origin, shapes, model, state)
    laid = _lay(outputs, [shapes[name] for _, name in origin.parts])
    known[key] = layer, laid
    return laid


def _outputs(
    origin: Origin, shapes: Mapping[str, tuple[int, ...]], model: Any, state: Mapping[str, torch.Tensor]
) -> dict[str, Traced | None]:
    """Return the entries of the model's state that an origin makes in the right shape, and what each is made of.

    None stands for an entry that is made in a way which is not followed.
    """
    numbers = {name: number for number, (_, name) in enumerate(origin.parts)}
    values: Mapping[str, torch.Tensor]
    try:
        values = origin.values(lambda name: Traced.stored(numbers[name], shapes[name]), model)
    except Exception as error:  # a conversion that is not followed, or that the stored tensors do not fit
        if memory_error(error) is not None:
            raise
        try:
            values = origin.values(lambda name: torch.empty(shapes[name], device="meta"), model)
        except Exception as again:  # what it would make is missing then
            if memory_error(again) is not None:
                raise
            return {}
    return {
        name: value if isinstance(value, Traced) else None
        for name, value in values.items()
        if name in state and state[name].shape == value.shape
    }


def _lay(outputs: Mapping[str, Traced | None], shapes: Sequence[tuple[int, ...]]) -> _Laid:
    """Find the pieces of an origin's tensors; one that does not lie in the model as a whole has none."""
    pieces: dict[int, list[tuple[str, tuple[slice, ...], int, tuple[int, ...]]]] = {}
    for path, value in outputs.items():
        for box in value.boxes if value is not None else ():
            pieces.setdefault(box.number, []).extend((path, *piece) for piece in _pieces(box))
    whole = {}
    for number, boxes in pieces.items():
        entries = sum(math.prod(at.stop - at.start for at in index) for _, index, _, _ in boxes)
        if entries == math.prod(shapes[number]) and len(boxes) <= _MOST_PIECES:
            whole[number] = boxes
    return _Laid(tuple(outputs), whole)


def _slots(
    laid: _Laid,
    names: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    parameters: Mapping[str, torch.nn.Parameter],
) -> dict[str, Slot]:
    """Return the slots of an origin's tensors, `names` in their order."""
    slots = {}
    for number, boxes in laid.pieces.items():
        name = names[number]
        if all(path in parameters for path, *_ in boxes):
            pieces = tuple(Piece(parameters[path], *rest) for path, *rest in boxes)  # type: ignore[arg-type]
            slots[name] = Slot(pieces, tuple(shapes[name]), _order(pieces, shapes[name]))
    return slots


def _pieces(box: Box) -> Iterator[tuple[tuple[slice, ...], int, tuple[int, ...]]]:
    """Cut a box along its axes so that in each piece offsets grow evenly; yields index, base and strides."""
    every = itertools.product(*(_even_runs(along) for along in box.offsets))
    for runs in itertools.islice(every, _MOST_PIECES + 1):
        index = tuple(slice(at + run.first, at + run.stop) for at, run in zip(box.start, runs, strict=True))
        yield index, box.base + sum(run.offset for run in runs), tuple(run.stride for run in runs)


class _Run(NamedTuple):
    first: int
    stop: int
    offset: int
    stride: int


def _even_runs(along: Offsets) -> list[_Run]:
    steps = np.diff(along)
    if not len(steps) or bool((steps == steps[0]).all()):
        return [_Run(0, len(along), 0, int(steps[0]) if len(steps) else 0)]
    breaks = np.flatnonzero(np.diff(steps)) + 1
    runs, first = [], 0
    while first < len(along):
        later = breaks[breaks > first]
        stop = int(later[0]) + 1 if len(later) else len(along)
        stride = int(along[first + 1] - along[first]) if stop - first > 1 else 0
        runs.append(_Run(first, stop, int(along[first]), stride))
        first = stop
    return runs


def _order(pieces: Sequence[Piece], shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return how the axes of an only piece lie in the stored tensor: outermost first, those of one entry before all."""
    if len(pieces) != 1 or pieces[0].base:
        return None
    piece = pieces[0]
    size = [at.stop - at.start for at in piece.index]
    order = sorted(range(len(size)), key=lambda axis: (size[axis] > 1, -piece.strides[axis]))
    wide = [(size[axis], piece.strides[axis]) for axis in order if size[axis] > 1]
    dense = [(n, math.prod(shape[axis + 1 :])) for axis, n in enumerate(shape) if n > 1]
    return tuple(order) if wide == dense else None


def parameters_of(slots: Mapping[str, Slot]) -> list[torch.nn.Parameter]:
    """Return the parameters that slots are parts of, each once."""
    return list({id(parameter): parameter for slot in slots.values() for parameter in slot.parameters}.values())


def check_slots(origin: Origin, slots: Mapping[str, Slot], made: Mapping[int, torch.Tensor], read: ReadTensor) -> None:
    """Compare what transformers made of an origin's tensors with where their slots say that they are, by values.

    `made` are the parameters' new values, by their ids, in the dtype on disk.

    Raises:
        CheckpointError: a slot holds something else, so that neither scores nor edits of that tensor could be believed.
    """
    for _, name in origin.parts:
        if name in slots and not torch.equal(slots[name].of(lambda parameter: made[id(parameter)]), read(name)):
            raise CheckpointError(
                f"tensor '{name}' does not lie in the model where it should, as transformers converts it to "
                f"'{origin.target}': exclude it, or use regions from a file, without scores or verification"
            )


def _natural(name: str) -> list[Any]:
    """Return transformers' key of order; of a name whose digits it takes for numbers that they are not, the letters."""
    from transformers.core_model_loading import dot_natural_key

    try:
        return list(dot_natural_key(name))
    except ValueError:  # such as a superscript two, or thousands of digits
        return [(1, name)]
