"""`neurons:` the feed-forward neurons that a file of the LAPE project lists for one language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.sources import local_file
from surgeon.recipe.fields import Model
from surgeon.region.importers import load_neurons
from surgeon.region.region import Region
from surgeon.regions.base import Planning, RegionKind, RegionPlan, shapes_of
from surgeon.regions.file import read

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
