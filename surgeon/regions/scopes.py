"""What a share is taken of: each tensor, each layer, all tensors together, or the entries behind each output.

A scope says which tensors share one cut, and how that is made. One that spans layers is cut in a stream of all its
tensors (`region.select.StreamingCut`); the others as soon as a layer's scores are complete.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from surgeon.checkpoint.naming import Place
from surgeon.checkpoint.storage import TensorInfo
from surgeon.kinds import kinds
from surgeon.region.mask import Mask
from surgeon.region.select import (
    ScoresOf,
    at_least,
    encode_chosen,
    entry_count_in_outputs,
    select_count,
    select_in_outputs,
)

if TYPE_CHECKING:
    from surgeon.regions.share import Share


class Scope:
    """Base of the scopes; they have no state."""

    of: ClassVar[str]  # what a share is one of, in words
    spans_layers: ClassVar[bool] = False
    spans_tensors: ClassVar[bool] = False

    def group(self, alone: str, where: Place) -> Hashable:
        """Return a key that is equal for tensors, or units, that share a cut; `alone` is one of their own."""
        return alone

    def refused(self, select: Share) -> str | None:
        """Say why a selection does not go with the scope; None if it does."""
        return None

    def count(self, select: Share, group: Sequence[TensorInfo], places: Mapping[str, Place]) -> int:
        """Return at most how many entries are selected of tensors that share a cut."""
        return select.wanted(sum(info.numel for info in group))

    def cut(
        self, select: Share, group: Sequence[TensorInfo], scores: ScoresOf, places: Mapping[str, Place]
    ) -> dict[str, Mask]:
        """Return the entries selected of tensors that share a cut; it is made where their scores are.

        These are numpy's, or torch's on a device; `region.select.on_host` brings those.

        Raises:
            InputError: a score is negative or not a number.
        """
        if select.at_least is not None:
            least = select.at_least
            return {
                info.name: encode_chosen(at_least(info.name, scores(info.name), least), info.shape) for info in group
            }
        shapes, sizes = {info.name: info.shape for info in group}, [(info.name, info.numel) for info in group]
        chosen = select_count(scores, sizes, self.count(select, group, places), select.end)
        return {name: encode_chosen(of_tensor, shapes[name]) for name, of_tensor in chosen}


def scope_of(select: Share) -> Scope:
    """Return what a share is taken of."""
    scope: Scope = kinds("surgeon.scopes")[select.scope]()
    return scope


class PerTensor(Scope):
    """A share of every tensor, or of the units that span several."""

    of = "every tensor"


class PerLayer(Scope):
    """A share of the tensors of each layer together; what is in no layer is cut by itself."""

    of = "every layer"
    spans_tensors = True

    def group(self, alone: str, where: Place) -> Hashable:
        """Return the layer."""
        return alone if where.layer is None else where.layer


class AllTensors(Scope):
    """A share of all tensors together."""

    of = "all tensors together"
    spans_layers = True
    spans_tensors = True

    def group(self, alone: str, where: Place) -> Hashable:
        """Return the same for all."""
        return ""


class PerOutput(Scope):
    """A share of the entries behind each output of a matrix, as Wanda compares them."""

    of = "every output"

    def refused(self, select: Share) -> str | None:
        """It goes with shares of highest or lowest scores, entry by entry."""
        if select.given not in (["top"], ["bottom"]):
            return "scope output goes with top or bottom"
        return None if select.unit == "entry" else "scope output selects entries, and no units"

    def count(self, select: Share, group: Sequence[TensorInfo], places: Mapping[str, Place]) -> int:
        """Return how many entries are selected: a share, rounded down, behind each output."""
        share = select.fraction or 0.0
        return sum(entry_count_in_outputs(info.shape, share, places[info.name].output_axis) for info in group)

    def cut(
        self, select: Share, group: Sequence[TensorInfo], scores: ScoresOf, places: Mapping[str, Place]
    ) -> dict[str, Mask]:
        """Return the entries selected behind each output."""
        share = select.fraction or 0.0

        def chosen(info: TensorInfo) -> Any:
            return select_in_outputs(info.name, scores(info.name), share, select.end, places[info.name].output_axis)

        return {info.name: encode_chosen(chosen(info), info.shape) for info in group}
