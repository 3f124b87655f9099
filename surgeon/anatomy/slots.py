"""Where each on-disk tensor stands in the model that transformers builds, both ways.

Mostly a tensor is a parameter of its own, perhaps under another name. Experts are the exception: on disk each expert
has its own matrices, while transformers 5 holds them fused, (experts, 2 * width, hidden) and (experts, hidden, width).
Which names and conversions belong to a family is transformers' own registry's to say, and its own code converts;
what is read off here is where in the result each tensor on disk came to lie: its `Slot`. Only a tensor that stays one
contiguous run of a parameter has one, so that flat indices keep their order; and the first time a converted
parameter is made, every slot is compared with the disk by its values.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from surgeon.errors import CheckpointError, present
from surgeon.memory import memory_error

ReadTensor = Callable[[str], torch.Tensor]  # from a name on disk to the tensor


@dataclass(frozen=True, eq=False)
class Slot:
    """The part of a model parameter that is one on-disk tensor: `index` is applied to the parameter."""

    parameter: torch.nn.Parameter
    index: tuple[int | slice, ...] = ()

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the same part, as a view, of a tensor of the parameter's shape, such as its gradient."""
        return tensor[self.index] if self.index else tensor

    def values(self) -> torch.Tensor:
        """Return a view of the parameter's present values, outside of autograd."""
        return self.of(self.parameter.detach())

    @property
    def offset(self) -> int:
        """Flat index, in the parameter, of the part's first entry; parts are contiguous in row-major order."""
        starts = (at.start if isinstance(at, slice) else at for at in self.index)
        return sum(start * math.prod(self.parameter.shape[axis + 1 :]) for axis, start in enumerate(starts))


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
    state = model.state_dict()
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
    parameters = dict(model.named_parameters(remove_duplicate=False))
    made: dict[str, Origin] = {}
    slots: dict[str, Slot] = {}
    for origin in origins.values():
        outputs = _outputs(origin, shapes, model, state)
        made |= dict.fromkeys(outputs, origin)
        if all(name in parameters for name in outputs):
            slots |= _slots(origin, outputs, shapes, parameters)
    return Names(made, slots)


def _outputs(
    origin: Origin, shapes: Mapping[str, tuple[int, ...]], model: Any, state: Mapping[str, torch.Tensor]
) -> list[str]:
    """Return the entries of the model's state that an origin makes in the right shape; found on the meta device."""
    if origin.converter is None:
        return [origin.target]
    try:
        converted = origin.values(lambda name: torch.empty(shapes[name], device="meta"), model)
    except Exception as error:  # a conversion that the stored tensors do not fit: what it would make is missing then
        if memory_error(error) is not None:
            raise
        return []
    return [name for name, value in converted.items() if name in state and state[name].shape == value.shape]


def _slots(
    origin: Origin,
    outputs: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    parameters: Mapping[str, torch.nn.Parameter],
) -> dict[str, Slot]:
    """Find the slots of an origin's tensors: of all of them, or, where one has none, of none."""
    if len(outputs) != 1:
        return {}
    parameter = parameters[outputs[0]]
    if origin.converter is None:
        return {origin.parts[0][1]: Slot(parameter)}
    blocks = _blocks(origin, shapes)
    slots = {}
    for name, (start, shape) in (blocks or {}).items():
        index = _run(start, shape, parameter.shape, len(shape) - len(shapes[name]))
        if index is None:
            return {}
        slots[name] = Slot(parameter, index)
    return slots


_Block = tuple[tuple[int, ...], tuple[int, ...]]  # where a tensor begins in the result, and its extent there


def _blocks(origin: Origin, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Block] | None:
    """Follow each tensor through stacking and concatenation; None if a converter does anything else."""
    converter = present(origin.converter)
    lists: dict[str, list[dict[str, _Block]]] = {}
    for pattern, name in origin.parts:
        shape = tuple(shapes[name])
        lists.setdefault(pattern, []).append({name: ((0,) * len(shape), shape)})
    for operation in converter.operations:
        kind = type(operation).__name__
        if kind == "MergeModulelist" and operation.dim == 0:
            lists = {pattern: [_stacked(items)] for pattern, items in lists.items()}
        elif kind == "Concatenate":
            in_order = [one for pattern in converter.source_patterns for one in lists.get(pattern, ())]
            lists = {"": [_concatenated(in_order, operation.dim)]}
        else:
            return None
    results = [one for items in lists.values() for one in items]
    return results[0] if len(results) == 1 else None


def _stacked(arrays: Sequence[Mapping[str, _Block]]) -> dict[str, _Block]:
    return {name: ((i, *start), (1, *size)) for i, array in enumerate(arrays) for name, (start, size) in array.items()}


def _concatenated(arrays: Sequence[Mapping[str, _Block]], axis: int) -> dict[str, _Block]:
    result: dict[str, _Block] = {}
    reached = 0
    for array in arrays:
        length = max(start[axis] + size[axis] for start, size in array.values())
        for name, (start, size) in array.items():
            moved = tuple(at + reached if i == axis % len(start) else at for i, at in enumerate(start))
            result[name] = (moved, size)
        reached += length
    return result


def _run(start: Sequence[int], size: Sequence[int], whole: Sequence[int], added: int) -> tuple[int | slice, ...] | None:
    """Return the index of a block that is one contiguous run of the whole, None if it is not.

    `added` are the leading axes that the tensor on disk does not have.
    """
    partial = [axis for axis, (length, all_of) in enumerate(zip(size, whole, strict=True)) if length != all_of]
    last = partial[-1] if partial else -1
    if any(size[axis] != 1 for axis in range(last)):
        return None
    return tuple(
        start[axis] if axis < added else slice(start[axis], start[axis] + size[axis])
        for axis in range(max(last + 1, added))
    )


def check_slots(origin: Origin, slots: Mapping[str, Slot], made: torch.Tensor, read: ReadTensor) -> None:
    """Compare what transformers made of an origin's tensors with where their slots say that they are, by values.

    `made` is the parameter's new value, in the dtype on disk.

    Raises:
        CheckpointError: a slot holds something else, so that neither scores nor edits of that tensor could be believed.
    """
    for _, name in origin.parts:
        if name in slots and not torch.equal(slots[name].of(made), read(name)):
            raise CheckpointError(
                f"tensor '{name}' does not lie in the model as one run of '{origin.target}', as transformers converts "
                "it: exclude it, or use regions from a file, without scores or verification"
            )


def _natural(name: str) -> list[Any]:
    """Return transformers' key of order; of a name whose digits it takes for numbers that they are not, the letters."""
    from transformers.core_model_loading import dot_natural_key

    try:
        return list(dot_natural_key(name))
    except ValueError:  # such as a superscript two, or thousands of digits
        return [(1, name)]
