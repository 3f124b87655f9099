"""Recipe and headers make a plan; whatever in the recipe does not fit the model or the corpus is found here.

Nothing but headers is read. All misfits are reported at once, each with its line, before a byte of a tensor is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.companions import check_companions
from surgeon.checkpoint.quantized import refuse_quantized
from surgeon.checkpoint.sources import refuse_output_inside
from surgeon.errors import CheckpointError, Problem, RecipeError
from surgeon.model.prospect import prospect_of
from surgeon.operations.edits import Surgery
from surgeon.plan.check import check
from surgeon.plan.estimates import bytes_to_write, disk_needed, peak_memory
from surgeon.plan.plan import Plan, VariantPlan
from surgeon.recipe.corpus import open_corpus
from surgeon.recipe.reading import RecipeFile
from surgeon.recipe.schema import Recipe
from surgeon.region.region import Region
from surgeon.regions.base import RegionPlan, no_masks
from surgeon.regions.outlines import plan_regions


def make_plan(file: RecipeFile, checkpoint: Checkpoint, output: Path) -> Plan:
    """Plan a recipe on a checkpoint.

    Raises:
        RecipeError: the recipe does not fit the model or the corpus; all misfits at once.
        CheckpointError: the checkpoint is quantized in a format that no codec knows, no decoder alone, its variants
            would not load, or the model is to be run and transformers cannot build it.
        InputError: the output lies inside the source or a hub cache, or the corpus does not exist.
    """
    recipe = file.recipe
    refuse_output_inside(output, checkpoint.source.path)
    refuse_quantized(checkpoint)
    _refuse_encoders(checkpoint)
    if any(variant.whole for variant in recipe.variants.values()):
        check_companions(checkpoint)
    corpus = open_corpus(recipe.corpus)
    problems: list[Problem] = []
    regions = plan_regions(file, checkpoint, problems)
    variants = {name: _plan_variant(recipe, checkpoint, name, regions) for name in recipe.variants}
    languages: tuple[str, ...] = ()
    if recipe.verify is not None:
        chosen = recipe.verify.languages
        languages = tuple(corpus.languages if chosen == "all" else dict.fromkeys(chosen))
    plan = Plan(file, checkpoint, corpus, output, regions, variants, languages, 0, 0)
    problems += check(plan)
    if problems:
        raise RecipeError(problems)
    if plan.runs_model and not checkpoint.is_remote:  # of a remote one the files are here when it is run
        prospect = prospect_of(checkpoint)
        if prospect.refused is not None:
            raise CheckpointError(prospect.refused)
        if prospect.ungraded is not None and any(score.backward for score in plan.scores()):
            raise CheckpointError(f"{checkpoint.source.name}: {prospect.ungraded}")
    return replace(plan, peak_memory=peak_memory(plan), disk_needed=disk_needed(plan))


def _refuse_encoders(checkpoint: Checkpoint) -> None:
    """Refuse models whose text has an encoder: half of them would be cut, or their perplexity would mean nothing."""
    config, name = checkpoint.config, checkpoint.source.name
    works = "surgeon works on text decoders, those of vision-language models included (docs/models.md)"
    if config.get("is_encoder_decoder") is True:
        raise CheckpointError(f"{name}: an encoder-decoder (model type {config.get('model_type')!r}); {works}")
    architectures = config.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    masked = [word for word in named if isinstance(word, str) and word.endswith("ForMaskedLM")]
    if masked and config.get("is_decoder") is not True:
        raise CheckpointError(f"{name}: {masked[0]} sees later tokens, so it has no perplexity; {works}")


def _plan_variant(recipe: Recipe, checkpoint: Checkpoint, name: str, regions: Mapping[str, RegionPlan]) -> VariantPlan:
    spec = recipe.variants[name]
    checkpoint = checkpoint.dequantized() if spec.dequantized else checkpoint
    write: bool | Literal["patch"] = "patch" if spec.write == "patch" else spec.whole
    used = {label: regions[label] for operation in spec.operations for label in operation.regions}
    shapes = {
        label: Region({info.name: info.shape for info in region.tensors}, no_masks) for label, region in used.items()
    }
    surgery = Surgery(checkpoint, spec.operations, shapes)
    operations = [line for operation in spec.operations for line in operation.described()]
    named = (("freeze", spec.freeze), ("train only", spec.train_only))
    held = [f"{polarity} {region}" for polarity, region in named if region is not None]
    return VariantPlan(
        name,
        write,
        tuple(operations + held),
        len(surgery.touched),
        sum(region.entries for region in used.values()),
        len({info.path for tensor in surgery.touched for info in surgery.stored(tensor)}),
        bytes_to_write(write, checkpoint, used.values()),
        surgery.most_blocks(sum(region.entries for region in used.values())),
    )
