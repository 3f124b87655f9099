"""The recipe with the commits of what came from the Hub in it, so that it means the same tomorrow."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.checkpoint.sources import is_hub_file, pinned_file
from surgeon.errors import SurgeonError, present
from surgeon.operations import AnyOperation, open_donor
from surgeon.plan.plan import Plan
from surgeon.recipe.corpus import TextSpec
from surgeon.recipe.schema import Recipe
from surgeon.regions.base import kind_of


def pinned_operations(operations: Sequence[AnyOperation]) -> list[AnyOperation]:
    """Return operations with the commits of donors that came from the Hub."""
    return [
        operation.model_copy(
            update={key: _pinned_names(getattr(operation, key)) for key in ("from_", "base") if hasattr(operation, key)}
        )
        for operation in operations
    ]


def _pinned_names(named: str | list[str] | None) -> str | list[str] | None:
    if named is None or isinstance(named, str):
        return named if named is None else _pinned_name(named)
    return [_pinned_name(one) for one in named]


def _pinned_name(donor: str) -> str:
    try:
        return pinned_file(donor) if is_hub_file(donor) else open_donor(donor).pinned
    except SurgeonError:  # what a sweep will put something else in the place of
        return donor


def pinned(plan: Plan) -> Recipe:
    """Return the recipe as it was written, with the commits of what came from the Hub."""
    recipe = plan.file.as_written
    variants = {}
    for name, variant in recipe.variants.items():
        variants[name] = variant.model_copy(update={"operations": pinned_operations(variant.operations)})
    corpus = recipe.corpus
    if isinstance(corpus, dict):
        corpus = {
            language: present(TextSpec.of(text)).model_copy(update={"revision": revision})
            if (revision := plan.corpus.revision(language))
            else text
            for language, text in corpus.items()
        }
    regions = {
        name: region.model_copy(update={kind_of(region).key: kind_of(region).pinned()})
        for name, region in recipe.regions.items()
    }
    return recipe.model_copy(
        update={
            "model": plan.checkpoint.source.pinned,
            "corpus": corpus,
            "regions": regions,
            "variants": variants,
        }
    )
