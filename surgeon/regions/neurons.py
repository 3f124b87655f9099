"""`neurons:` the feed-forward neurons that a file of the LAPE project lists for one language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import Place
from surgeon.checkpoint.plain_json import NotPlain
from surgeon.checkpoint.sources import local_file
from surgeon.checkpoint.storage import TensorInfo
from surgeon.checkpoint.torch_files import refuse_repeated
from surgeon.errors import RegionError
from surgeon.recipe.fields import Model
from surgeon.region.mask import Indices
from surgeon.region.region import Region
from surgeon.regions.base import Planning, RegionKind, RegionPlan, shapes_of
from surgeon.regions.entries import lines
from surgeon.regions.file import load_pickle, read

if TYPE_CHECKING:
    from surgeon.recipe.schema import RegionSpec


class Neurons(Model, RegionKind):
    """The feed-forward neurons that a file of the LAPE project lists for one language."""

    file: str = Field(description="such as `LLaMA-2-7B.neuron.pth`")
    language: Annotated[int, Field(ge=0)] = Field(description="which of the file's languages, counted from 0")

    key: ClassVar[str] = "neurons"
    description: ClassVar[str] = "language-specific neurons from a file"

    def outline(self, planning: Planning, name: str, spec: RegionSpec, plans: Mapping[str, RegionPlan]) -> RegionPlan:
        """Read the file."""
        return read(planning, name, spec, self.key, self._load)

    def _load(self, checkpoint: Checkpoint) -> Region:
        chosen = load_neurons(local_file(self.file), self.language, checkpoint)
        return Region.from_indices(chosen, shapes_of(checkpoint.info(name) for name in chosen))


def load_neurons(path: Path, language: int, checkpoint: Checkpoint) -> dict[str, Indices]:
    """Return the entries of one language's feed-forward neurons, from a file of the LAPE project (arXiv 2402.16438).

    The file holds, for each language and layer, the indices of neurons. A neuron is its row in the gate and up
    matrices (and its entry in their biases), and its column in the down matrix.

    Raises:
        RegionError: the file is of another form, or its neurons are not those of this model.
    """
    data = load_pickle(path)
    if not (isinstance(data, list) and data and all(isinstance(layers, list) for layers in data)):
        raise RegionError(f"{path}: not a file of neurons: it must hold, for each language, a list of layers' indices")
    if language >= len(data):
        raise RegionError(f"{path}: holds {len(data)} languages, so the last is language {len(data) - 1}")
    layers = _feed_forward(checkpoint)
    if len(layers) != len(data[language]):
        raise RegionError(f"{path}: has neurons for {len(data[language])} layers, but the model has {len(layers)}")
    chosen: dict[str, Indices] = {}
    for layer, (neurons, tensors) in enumerate(zip(data[language], layers.values(), strict=True)):
        indices = _whole_numbers(path, neurons)
        width = _neurons(tensors)
        if indices and not 0 <= min(indices) <= max(indices) < width:
            raise RegionError(f"{path}: layer {layer} has neuron {max(indices)}, but the model has {width} in a layer")
        for info, where in tensors:
            chosen[info.name] = _entries(info, where, indices, width)
    return chosen


def _whole_numbers(path: Path, neurons: Any) -> list[int]:
    import torch

    if isinstance(neurons, torch.Tensor):
        try:
            refuse_repeated(neurons)
        except NotPlain as error:
            raise RegionError(f"{path}: {error}") from None
        neurons = neurons.tolist()
    if not isinstance(neurons, list) or not all(type(index) is int for index in neurons):  # a boolean is no index
        raise RegionError(f"{path}: not a file of neurons: a layer's neurons must be a list of whole numbers")
    return neurons


def _feed_forward(checkpoint: Checkpoint) -> Mapping[int, list[tuple[TensorInfo, Place]]]:
    """Return each layer's feed-forward tensors, layers in order."""
    layers: dict[int, list[tuple[TensorInfo, Place]]] = {}
    places = anatomy_of(checkpoint).places
    for info in checkpoint.tensors.values():
        where = places[info.name]
        if where.in_decoder and where.layer is not None and where.role.startswith("mlp."):
            layers.setdefault(where.layer, []).append((info, where))
    return dict(sorted(layers.items()))


def _neurons(tensors: Sequence[tuple[TensorInfo, Place]]) -> int:
    """Return how many neurons a layer has: the inputs of its one down matrix.

    Raises:
        RegionError: the layer has several, or none that is known.
    """
    down = [(info, where) for info, where in tensors if where.role == "mlp.down" and len(info.shape) > 1]
    if len(down) != 1 or len(down[0][0].shape) != 2:
        raise RegionError(
            f"neurons of layer {tensors[0][1].layer} cannot be named by one number: it has not one down matrix of two "
            "axes (a mixture of experts has many)"
        )
    info, where = down[0]
    return info.shape[1 - (where.output_axis or 0)]


def _entries(info: TensorInfo, where: Place, neurons: list[int], width: int) -> Indices:
    """Return the entries that neurons have in one tensor of their layer."""
    if where.role == "mlp.down":
        if len(info.shape) == 1:
            return np.empty(0, dtype=np.int64)  # the bias belongs to no neuron
        return lines(info.shape, *((neurons, []) if where.output_axis == 1 else ([], neurons)))
    if where.role == "mlp.gate_up":
        neurons = [*neurons, *(index + width for index in neurons)]  # the gates come first, then the ups
    return lines(info.shape, *(([], neurons) if where.output_axis == 1 else (neurons, [])))
