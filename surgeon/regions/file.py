"""`file:` a region that was saved, or a folder of boolean masks.

Such masks, as other projects' files, are pickles. They are loaded with `weights_only=True`, so that no code in them
runs; what needs more than plain tensors and lists is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, RootModel

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.plain_json import NotPlain
from surgeon.checkpoint.sources import local_file, pinned_file
from surgeon.checkpoint.torch_files import load_plain, refuse_repeated
from surgeon.errors import RegionError
from surgeon.operations.edits import check_regions_fit
from surgeon.region.mask import Mask, encode_mask
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


def load_masks(folder: Path) -> Region:
    """Open a folder of masks, one file TENSOR.pt per tensor, as the authors of the method save them.

    Each holds one boolean tensor of the parameter's shape. Shapes are read now and masks when asked for; once read,
    they are kept encoded.

    Raises:
        RegionError: there is no such file in the folder, or one of them is no boolean tensor.
    """
    files = {path.name.removesuffix(".pt"): path for path in sorted(folder.glob("*.pt"))}
    if not files:
        raise RegionError(f"{folder}: neither a region file nor a folder of masks named TENSOR.pt")

    @cache
    def mask(name: str) -> Mask:
        return encode_mask(_boolean(files[name]).numpy())

    shapes = {name: tuple(_boolean(path).shape) for name, path in files.items()}
    return Region(shapes, mask, {"made_from": {"masks": str(folder)}})


def _boolean(path: Path) -> Any:
    """Map one mask; its data are read when used."""
    import torch

    tensor = load_pickle(path)
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.bool:
        held = f"a tensor of {tensor.dtype}" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
        raise RegionError(
            f"{path}: holds {held}; a mask is one boolean tensor, which torch.save(mask.bool(), {path.name!r}) writes"
        )
    try:
        refuse_repeated(tensor)
    except NotPlain as error:
        raise RegionError(f"{path}: {error}") from None
    return tensor


def load_pickle(path: Path) -> Any:
    """Return what a pickle of plain tensors and lists holds.

    Raises:
        RegionError: it holds anything else, or is damaged.
    """
    try:
        return load_plain(path)
    except NotPlain as error:
        raise RegionError(f"{path}: {error}") from None
