"""What will be scored, selected, changed, written and measured: a plan, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.anatomy.scope import scope
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.companions import companions
from surgeon.checkpoint.naming import natural_key
from surgeon.checkpoint.quantized import notes_on, remarks
from surgeon.checkpoint.remote import RemoteFile
from surgeon.checkpoint.sources import is_hub_file, pinned_file
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import SurgeonError, present
from surgeon.measure.parts import parted
from surgeon.operations import AnyOperation, Operation, open_donor
from surgeon.recipe.corpus import TextSpec
from surgeon.recipe.reading import RecipeFile
from surgeon.recipe.schema import Recipe
from surgeon.regions.base import Provenance, RegionPlan
from surgeon.scores.base import SampledScore, Score
from surgeon.text.corpora import Corpus


@dataclass(frozen=True)
class VariantPlan:
    """A variant to be made; bytes are those of the whole checkpoint, or at most of the patch, it is written as.

    `blocks_at_most` are those of which entries are encoded anew, 0 if zeros are codes; None where nothing is quantized.
    """

    operations: Sequence[str]
    write: bool | Literal["patch"]
    tensors: int
    entries_at_most: int
    shards: int
    bytes_to_write: int
    blocks_at_most: int | None


@dataclass(frozen=True)
class Plan:
    """Everything that `apply` will do, known from the recipe and the headers alone."""

    file: RecipeFile
    checkpoint: Checkpoint
    corpus: Corpus
    output: Path
    regions: Mapping[str, RegionPlan]
    variants: Mapping[str, VariantPlan]
    verify_languages: tuple[str, ...]
    peak_memory: int
    disk_needed: int

    def operations_of(self, model: str) -> list[Operation]:
        """Return what is done to a variant; to the base, nothing."""
        return list(self.recipe.variants[model].operations) if model in self.recipe.variants else []

    def source_of(self, variant: str) -> Checkpoint:
        """Return the checkpoint that a variant, or the base, is made of: dequantized if it is written so."""
        spec = self.recipe.variants.get(variant)
        return self.checkpoint.dequantized() if spec is not None and spec.dequantized else self.checkpoint

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.file.recipe

    @property
    def remarks(self) -> list[str]:
        """Lines that say where the source's files are not what one would think, and which do not come into variants."""
        written = any(variant.write is True for variant in self.variants.values())
        if not written:
            return remarks(self.checkpoint)
        return [*notes_on(self.checkpoint), *companions(self.checkpoint).notes]

    @property
    def idle(self) -> list[str]:
        """Variants of which nothing would come: they are neither written nor measured."""
        if self.recipe.verify is not None:
            return []
        return [name for name, variant in self.variants.items() if not variant.write]

    def edited(self, *variants: str) -> set[str]:
        """Return the names of tensors that operations may change, those of some variants or of all."""
        specs = [self.recipe.variants[name] for name in variants or self.recipe.variants]
        regions = {label for spec in specs for operation in spec.operations for label in operation.regions}
        return {info.name for label in regions for info in self.regions[label].tensors}

    @property
    def talkers(self) -> list[str]:
        """The models that continue the prompts: the base, and all variants or those that the recipe names."""
        verify = self.recipe.verify
        if verify is None or not verify.prompts:
            return []
        named = verify.continued_by
        return ["base", *(name for name in self.variants if named is None or name in named)]

    @property
    def dissected(self) -> list[str]:
        """The variants whose cut is measured in its parts, too: all that do something, but for points of sweeps."""
        if self.recipe.verify is None or not self.recipe.verify.by:
            return []
        points = {point for sweep in self.file.sweeps.values() for point in sweep.points}
        return [name for name, spec in self.recipe.variants.items() if spec.operations and name not in points]

    def parts(self) -> list[list[str]]:
        """Return the tensors of each part of a cut that is measured by itself; there may turn out to be fewer."""
        places, by = anatomy_of(self.checkpoint).places, self.recipe.verify.by if self.recipe.verify else []
        parts_of_cuts = [
            list(parted(self.edited(name), one, places, self.checkpoint.ties).values())
            for name in self.dissected
            for one in dict.fromkeys(by)
        ]
        return [names for parts in parts_of_cuts if len(parts) > 1 for names in parts]

    @property
    def needs_all_weights(self) -> bool:
        """True if the model is run, or written as a whole; a patch needs only the tensors that it changes."""
        written = any(variant.write is True for variant in self.variants.values())
        return written or self.recipe.verify is not None or bool(self.scores())

    @property
    def runs_model(self) -> bool:
        """True if the model is run: measured, or scored on text."""
        return self.recipe.verify is not None or bool(self.sampled_scores())

    @property
    def bytes_to_download(self) -> int:
        """Bytes of weight files that `apply` will fetch into the Hub's cache."""
        if not self.needs_all_weights:
            return 0
        return sum(header.file_size for header in self.checkpoint.headers if isinstance(header.path, RemoteFile))

    def scored_tensors(self, score: Score) -> tuple[TensorInfo, ...]:
        """Tensors to score: all decoder-layer parameters, so that recipes share scores, and what regions add."""
        reach = scope(self.checkpoint)
        on_text = score.on_text is not None
        chosen = {
            info.name: info
            for info in reach.tensors
            if score.can_score(info, reach.places[info.name]) and (reach.places[info.name].movable or not on_text)
        }
        for region in self.regions.values():
            if region.score == score:
                chosen |= {info.name: info for info in region.tensors}
        return tuple(chosen[name] for name in sorted(chosen, key=natural_key))

    def scores(self) -> list[Score]:
        """The distinct scores that the regions need."""
        distinct: list[Score] = []
        for region in self.regions.values():
            if region.score is not None and region.score not in distinct:
                distinct.append(region.score)
        return distinct

    def sampled_scores(self) -> list[SampledScore]:
        """Those of them that are made on text."""
        return [score.on_text for score in self.scores() if score.on_text is not None]

    def provenance(self, jobs: int) -> Provenance:
        """Return what the regions are made from."""
        return Provenance(self.checkpoint, self.corpus.name, self.regions, jobs)


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
        name: region.model_copy(update={region.kind.key: region.kind.pinned()})
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
