"""What the neurons of the feed-forward do on the sample, in one pass forward; each entry of a neuron has its score.

    frequency   share of the tokens at which the gate's product is positive: P(act > 0) of LAPE (arXiv 2402.16438),
                since ReLU, GELU and SiLU keep the sign; where there is no gate, of the up projection
    mean        of the size of what the neuron gives the down matrix
    maximum     the same, largest
    spike       of an entry (i, j) of the down matrix: the largest input of its column j times the largest output of its
                row i, in size; the highest of a model is where a super weight is to be looked for (arXiv 2411.07191)

Of experts only the tokens count that the router sends them. Counts and sums are float64 whatever the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from surgeon.checkpoint.naming import Place
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import InputError
from surgeon.region.units import Parts, is_stacked, parts_of
from surgeon.scores.base import ForwardScore
from surgeon.scores.statistics import Side, Statistic

if TYPE_CHECKING:
    import torch

    from surgeon.scores.statistics import RunningStatistics

Measure = Literal["frequency", "mean", "maximum", "spike"]


class Activation(ForwardScore):
    """What the neurons of the feed-forward do on the sample; every entry of a neuron has the neuron's score."""

    kind: Literal["activation"] = Field(description="the score: how a neuron is active")
    measure: Measure = Field(
        description="frequency: share of tokens at which the gate is open; mean, maximum: of the size of what the "
        "neuron gives the down matrix; spike: of an entry of the down matrix, the largest input of its column times "
        "the largest output of its row"
    )

    def can_score(self, info: TensorInfo, where: Place) -> bool:
        """True for what holds neurons of the feed-forward; of spikes for its down matrices."""
        if self.measure == "spike":
            return where.role == "mlp.down" and len(info.shape) == 2
        if not where.role.startswith("mlp.") or is_stacked(info.name, info.shape, where):
            return False
        return parts_of("neuron", info.name, info.shape, where, {}) is not None

    @property
    def limits(self) -> str:
        """Say which tensors it scores."""
        where = "down matrices" if self.measure == "spike" else "neurons of the feed-forward"
        return f"activation ({self.measure}) scores {where} only, one expert's tensors by themselves"

    def statistics(self, inputs: torch.Tensor, outputs: torch.Tensor) -> Iterator[Statistic]:
        """Yield sums or maxima over the tokens of one product."""
        tokens = inputs.shape[0]
        if not tokens:
            return
        if self.measure == "frequency":
            yield Statistic("positive", "outputs", "sum", (outputs > 0).sum(0).double())
        elif self.measure == "mean":
            yield Statistic("inputs", "inputs", "sum", inputs.double().abs().sum(0))
        else:
            yield Statistic("inputs", "inputs", "maximum", inputs.abs().amax(0).double())
        if self.measure == "spike":
            yield Statistic("outputs", "outputs", "maximum", outputs.abs().amax(0).double())
        if self.measure in ("frequency", "mean"):
            side: Side = "outputs" if self.measure == "frequency" else "inputs"
            yield Statistic("tokens", side, "sum", inputs.new_tensor([tokens]).double())

    def scores(self, running: RunningStatistics) -> dict[str, torch.Tensor]:
        """Return the neurons' figures, spread over their entries; of spikes those of the entries themselves.

        Raises:
            InputError: the model multiplies nothing with a neuron's matrix.
        """
        if self.measure == "spike":
            return {
                name: (running.expanded(name, "outputs") * running.expanded(name, "inputs")).float()
                for name in running.slots
            }
        import torch

        parts = _neurons(running)
        figures = {parts[name].group: self._figures(name, running) for name in self._sources(running, parts)}
        result = {}
        for name, part in parts.items():
            if part.group not in figures:
                raise InputError(f"tensor '{name}' has no activation score: nothing in its layer tells of its neurons")
            of_entries = torch.from_numpy(part.spread(figures[part.group].numpy()).copy())
            result[name] = of_entries.reshape(running.slots[name].shape).contiguous()
        return result

    def _sources(self, running: RunningStatistics, parts: Mapping[str, Parts]) -> list[str]:
        """Return the matrix of each layer, or expert, that its neurons' figures are read off."""
        roles = ("mlp.gate", "mlp.gate_up", "mlp.up") if self.measure == "frequency" else ("mlp.down",)
        sources: dict[str, str] = {}
        for role in roles:
            for name, part in parts.items():
                if running.places[name].role == role and len(running.slots[name].shape) == 2:
                    sources.setdefault(part.group, name)
        return list(sources.values())

    def _figures(self, name: str, running: RunningStatistics) -> torch.Tensor:
        """Return a figure per neuron, float32 on the CPU."""
        figures = running.vector(name, "positive" if self.measure == "frequency" else "inputs")
        if self.measure in ("frequency", "mean"):
            figures = figures / running.vector(name, "tokens").clamp_min(1)
        if running.places[name].role == "mlp.gate_up":
            gates = slice(0, None, 2) if running.places[name].alternating else slice(0, len(figures) // 2)
            figures = figures[gates]
        return figures.float()


def _neurons(running: RunningStatistics) -> dict[str, Parts]:
    """Return which part of which neuron each entry of a layer's tensors is."""
    parts = {
        name: parts_of("neuron", name, slot.shape, running.places[name], running.config)
        for name, slot in running.slots.items()
    }
    return {name: part for name, part in parts.items() if part is not None}
