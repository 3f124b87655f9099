"""What the neurons of the feed-forward do on the sample, in one sweep forward; each entry of a neuron has its score.

    frequency   share of the tokens at which the gate's product is positive: P(act > 0) of LAPE (arXiv 2402.16438),
                since ReLU, GELU and SiLU keep the sign; where there is no gate, of the up projection
    mean        of the size of what the neuron gives the down matrix
    maximum     the same, largest
    spike       of an entry (i, j) of the down matrix: the largest input of its column j times the largest output of its
                row i, in size; the highest of a model is where a super weight is to be looked for (arXiv 2411.07191)

Of experts only the tokens count that the router sends them. Counts and sums are float64 whatever the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from surgeon.anatomy.slots import Slot
from surgeon.checkpoint.naming import Place
from surgeon.errors import InputError
from surgeon.recipe.score_specs import Measure
from surgeon.region.units import Parts, parts_of
from surgeon.scores.products import Products
from surgeon.scores.sample import Scores


class Activations(Products):
    """Notes of each matrix what its measure needs of inputs or outputs."""

    def __init__(
        self, slots: Mapping[str, Slot], measure: Measure, places: Mapping[str, Place], config: Mapping[str, Any]
    ) -> None:
        super().__init__(slots)
        self._measure, self._places = measure, places
        parts = {
            name: parts_of("neuron", name, tuple(slot.values().shape), places[name], config)
            for name, slot in slots.items()
        }
        self._parts: dict[str, Parts] = {name: part for name, part in parts.items() if part is not None}

    def note(self, address: int, axis: int, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Take in sums or maxima over the tokens of one product."""
        if not inputs.shape[0]:
            return
        if self._measure == "frequency":
            self._add(address, axis, "positive", (outputs > 0).sum(0).double())
        elif self._measure == "mean":
            self._add(address, axis, "inputs", inputs.double().abs().sum(0))
        else:
            self._raise(address, axis, "inputs", inputs.abs().amax(0).double())
        if self._measure == "spike":
            self._raise(address, axis, "outputs", outputs.abs().amax(0).double())
        if self._measure in ("frequency", "mean"):
            self._add(address, axis, "tokens", torch.tensor([float(inputs.shape[0])], dtype=torch.float64))

    def scores(self) -> Scores:
        """Return the neurons' figures, spread over their entries.

        Raises:
            InputError: the model multiplies nothing with a neuron's matrix, or the activations are not finite.
        """
        if self._measure == "spike":
            return {name: self._spikes(name, slot) for name, slot in self.slots.items()}
        sources = {self._parts[name].group: self._figures(name) for name in self._sources()}
        result = {}
        for name, part in self._parts.items():
            if part.group not in sources:
                raise InputError(f"tensor '{name}' has no activation score: nothing in its layer tells of its neurons")
            labels = torch.from_numpy(part.labels)
            spread = sources[part.group][labels][None, :, None].expand(part.view)
            result[name] = spread.reshape(self.slots[name].values().shape).contiguous()
        return result

    def _sources(self) -> list[str]:
        """Return the matrix of each layer, or expert, that its neurons' figures are read off."""
        roles = ("mlp.gate", "mlp.gate_up", "mlp.up") if self._measure == "frequency" else ("mlp.down",)
        found: dict[str, str] = {}
        for role in roles:
            for name, part in self._parts.items():
                if self._places[name].role == role and self.slots[name].values().dim() == 2:
                    found.setdefault(part.group, name)
        return list(found.values())

    def _figures(self, name: str) -> torch.Tensor:
        """Return a figure per neuron, float32 on the CPU."""
        slot = self.slots[name]
        word = "positive" if self._measure == "frequency" else "inputs"
        along_inputs = word == "inputs"
        figures = self._spread(name, slot, word, along_inputs)
        if self._measure in ("frequency", "mean"):
            figures = figures / self._spread(name, slot, "tokens", along_inputs).clamp_min(1)
        if self._places[name].role == "mlp.gate_up":
            figures = figures[: len(figures) // 2]
        return figures.float()

    def _spread(self, name: str, slot: Slot, word: str, along_inputs: bool) -> torch.Tensor:
        """Return what was noted of a tensor's matrix along its inputs or its outputs, float64 on the CPU."""
        found = self.of(slot.parameter, word)
        if found is None:
            raise InputError(
                f"tensor '{name}' has no activation score: the model multiplies no inputs with it as the matrix of a "
                "linear layer; exclude it"
            )
        inner, noted = found
        if not bool(torch.isfinite(noted).all()):
            raise InputError(f"the activations at tensor '{name}' are not finite: the model is broken")
        axis = inner if along_inputs else 1 - inner
        whole = noted.unsqueeze(2 - axis)
        whole = (whole if slot.parameter.dim() == 3 else whole[0]).expand_as(slot.parameter)
        return slot.of(whole).select(1 - axis, 0).cpu()

    def _spikes(self, name: str, slot: Slot) -> torch.Tensor:
        found = self.of(slot.parameter, "inputs")
        inputs, outputs = self._spread(name, slot, "inputs", True), self._spread(name, slot, "outputs", False)
        assert found is not None
        spikes = torch.outer(outputs, inputs) if found[0] == 1 else torch.outer(inputs, outputs)
        return spikes.float()

    def _add(self, address: int, axis: int, word: str, value: torch.Tensor) -> None:
        known = self.noted.get((address, axis, word))
        self.noted[address, axis, word] = value if known is None else known + value.to(known.device)

    def _raise(self, address: int, axis: int, word: str, value: torch.Tensor) -> None:
        known = self.noted.get((address, axis, word))
        self.noted[address, axis, word] = value if known is None else torch.maximum(known, value)
