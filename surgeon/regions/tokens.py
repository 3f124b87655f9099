"""`tokens:` the rows of some tokens in the embedding and in the output."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import ConfigDict, Field, RootModel

from surgeon.anatomy.scope import scope
from surgeon.checkpoint.ties import is_position_table
from surgeon.errors import CheckpointError
from surgeon.freeze.tokens import rows_of, token_ids
from surgeon.model.tokenizer import load_tokenizer
from surgeon.region.mask import encode_indices
from surgeon.region.region import Region
from surgeon.regions.base import Planning, RegionKind, RegionPlan, shapes_of

if TYPE_CHECKING:
    from surgeon.recipe.schema import RegionSpec

_Run = Annotated[list[int], Field(min_length=2, max_length=2)]


class Tokens(RootModel[Annotated[list[int | str | _Run], Field(min_length=1)]], RegionKind):
    """Tokens by their ids, by first and last id, or as strings that the model's tokenizer knows."""

    model_config = ConfigDict(frozen=True, strict=True)
    key: ClassVar[str] = "tokens"
    description: ClassVar[str] = (
        "rows of tokens in the embedding and the output: ids, `[first, last]`, or strings of the tokenizer"
    )

    def outline(self, planning: Planning, name: str, spec: RegionSpec, plans: Mapping[str, RegionPlan]) -> RegionPlan:
        """Find the tensors with a row per token, and the ids of strings; masks are made when they are asked for."""
        checkpoint = planning.checkpoint
        ends = (info for info in scope(checkpoint, ["embed", "head"]).tensors if len(info.shape) == 2)
        shapes = shapes_of(info for info in ends if not is_position_table(info.name))
        ids: list[int] = []
        try:
            if not shapes:
                raise ValueError(f"the model {checkpoint.source.name} has no embedding of tokens")
            tokenizer = lru_cache(maxsize=1)(partial(load_tokenizer, checkpoint))
            ids = token_ids(self.root, min(shape[0] for shape in shapes.values()), tokenizer)
        except (ValueError, CheckpointError) as error:
            planning.problem(("regions", name, "tokens"), str(error))
            shapes = {}
        region = Region(shapes, lambda tensor: encode_indices(rows_of(shapes[tensor], ids), shapes[tensor]))
        return planning.whole(name, spec, region)

    def selects(self) -> str:
        """Return what it selects."""
        return "rows of tokens"
