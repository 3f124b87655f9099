"""`file:` a region that was saved, or a folder of boolean masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import ConfigDict, RootModel

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.sources import local_file, pinned_file
from surgeon.errors import RegionError
from surgeon.operations.edits import check_regions_fit
from surgeon.region.importers import load_masks
from surgeon.region.region import Region
from surgeon.regions.base import Planning, RegionKind, RegionPlan, no_masks

if TYPE_CHECKING:
    from surgeon.recipe.schema import RegionSpec


class File(RootModel[str], RegionKind):
    """A region file, or a folder of boolean masks `TENSOR.pt`."""

    model_config = ConfigDict(frozen=True, strict=True)
    key: ClassVar[str] = "file"
    says_itself: ClassVar[bool] = True
    description: ClassVar[str] = "a region file, or a folder of boolean masks `TENSOR.pt`"

    def outline(self, planning: Planning, name: str, spec: RegionSpec, plans: Mapping[str, RegionPlan]) -> RegionPlan:
        """Read the file."""
        return read(planning, name, spec, self.key, self._load)

    def _load(self, checkpoint: Checkpoint) -> Region:
        path = local_file(self.root)
        return load_masks(path) if path.is_dir() else Region.load(path)

    def pinned(self) -> File:
        """Return it with the revision of a file on the Hub."""
        return File(pinned_file(self.root))


def read(planning: Planning, name: str, spec: RegionSpec, key: str, load: Callable[[Checkpoint], Region]) -> RegionPlan:
    """Return the outline of a region that `load` reads; what is wrong with it is added to the problems."""
    region = Region({}, no_masks)
    try:
        loaded = load(planning.checkpoint)
        check_regions_fit(planning.checkpoint, {name: loaded})
        if loaded.entries == 0:
            planning.problem(("regions", name, key), f"region '{name}': what the file holds is empty")
        region = loaded
    except RegionError as error:
        planning.problem(("regions", name, key), str(error))
    return planning.whole(name, spec, region)
