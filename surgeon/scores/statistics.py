"""What a forward score notes of the products with a layer's matrices: of one product, and of all in one language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from surgeon.checkpoint.naming import Place
from surgeon.errors import InputError, present

if TYPE_CHECKING:
    import torch

    from surgeon.anatomy.slots import Slot

Side = Literal["inputs", "outputs"]  # of a matrix


@dataclass(frozen=True)
class Statistic:
    """What one product of inputs (tokens, inputs) with a matrix gives to a running sum or maximum, float64.

    `along` says which side of the matrix the values belong to: one for each input or output, or one for all of them.
    """

    word: str
    along: Side
    how: Literal["sum", "maximum"]
    values: torch.Tensor

    def and_then(self, other: Statistic) -> Statistic:
        """Return the sum, or maximum, of both."""
        import torch

        both = torch.add if self.how == "sum" else torch.maximum
        return replace(self, values=both(self.values, other.values))


# By the number of a matrix, the axis of it that meets the inputs, and a statistic's word.
Collected = dict[tuple[int, int, str], Statistic]


@dataclass
class RunningStatistics:
    """Running sums and maxima of the matrices that `slots` are parts of.

    A matrix is a parameter, or one expert's part of it. `places` and `config` say what the slots' tensors are.
    """

    kind: str
    slots: Mapping[str, Slot]
    places: Mapping[str, Place]
    config: Mapping[str, Any]
    collected: Collected = field(default_factory=dict)
    matrices: list[torch.Tensor] = field(default_factory=list)
    _numbers: dict[int, range] = field(default_factory=dict)  # by a parameter's id, those of its matrices

    def __post_init__(self) -> None:
        from surgeon.anatomy.slots import parameters_of

        for parameter in parameters_of(self.slots):
            matrices = matrices_of(parameter)
            self._numbers[id(parameter)] = range(len(self.matrices), len(self.matrices) + len(matrices))
            self.matrices += matrices

    def take(self, matrix: int, axis: int, statistic: Statistic) -> None:
        """Add what one product gives."""
        merged(self.collected, {(matrix, axis, statistic.word): statistic})

    def expanded(
        self, name: str, word: str, change: Callable[[torch.Tensor], torch.Tensor] = lambda values: values
    ) -> torch.Tensor:
        """Return for every entry of a tensor what was noted of its input or output, in the shape on disk.

        `change` is applied to what was noted before it is spread over the entries. A matrix that met no input, such as
        that of an expert that no router chose, has zeros.

        Raises:
            InputError: the model multiplies nothing with the tensor, or what was noted is not finite.
        """
        slot = self.slots[name]
        spread: dict[int, torch.Tensor] = {}
        for parameter in slot.parameters:
            noted = self._of(parameter, word)
            if noted is None:
                raise InputError(
                    f"tensor '{name}' has no {self.kind} score: the model multiplies no inputs with it as the matrix "
                    "of a linear layer; exclude it, or use grad_param"
                )
            axis, values = noted
            if not bool(values.isfinite().all()):
                raise InputError(f"the activations at tensor '{name}' are not finite: the model is broken")
            whole = change(values).unsqueeze(2 - axis)
            spread[id(parameter)] = (whole if parameter.dim() == 3 else whole[0]).expand_as(parameter)
        return slot.of(lambda parameter: spread[id(parameter)])

    def vector(self, name: str, word: str) -> torch.Tensor:
        """Return what was noted of each input or output of a tensor with two axes, float64 on the CPU."""
        whole, slot = self.expanded(name, word), self.slots[name]
        axis, _ = present(self._of(slot.parameters[0], word))
        return whole.select(1 - slot.matrix_axis(axis), 0).cpu()

    def _of(self, parameter: torch.nn.Parameter, word: str) -> tuple[int, torch.Tensor] | None:
        """Return what was noted of a parameter's matrices, stacked, and along which of their axes the values lie."""
        import torch

        for axis in (0, 1):
            noted = [self.collected.get((number, axis, word)) for number in self._numbers[id(parameter)]]
            some = next((statistic for statistic in noted if statistic is not None), None)
            if some is not None:
                nothing = torch.zeros_like(some.values)
                values = [nothing if statistic is None else statistic.values for statistic in noted]
                return axis if some.along == "inputs" else 1 - axis, torch.stack(values)
        return None


def merged(known: Collected, new: Collected) -> Collected:
    """Add statistics to those of the products before."""
    for key, statistic in new.items():
        before = known.get(key)
        known[key] = statistic if before is None else before.and_then(statistic)
    return known


def matrices_of(parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    """Return a parameter's matrices: itself, or each expert's; nothing if it has none."""
    detached = parameter.detach()
    return list(detached) if detached.dim() == 3 else [detached] if detached.dim() == 2 else []
