"""From a recipe's name or path to its plan: recipe and headers say all that will happen.

Nothing but headers is read. All misfits are reported at once, each with its line, before a byte of a tensor is touched.
Light, since `surgeon plan` is to be instant.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.companions import check_companions
from surgeon.checkpoint.quantized import refuse_quantized
from surgeon.checkpoint.sources import look_again, refuse_output_inside
from surgeon.errors import CheckpointError, InputError, Problem, RecipeError, close_to, did_you_mean
from surgeon.model import budgets
from surgeon.model.prospect import prospect_of
from surgeon.operations.edits import Surgery
from surgeon.plan.check import NotHere, check, check_device, chosen_device
from surgeon.plan.duration import steps
from surgeon.plan.needs import bytes_to_write, disk_needed, peak_memory
from surgeon.plan.plan import Plan, VariantPlan
from surgeon.progress import Step
from surgeon.recipe.corpus import open_corpus
from surgeon.recipe.reading import RecipeFile, load_recipe
from surgeon.recipe.schema import VariantSpec
from surgeon.region.region import Region
from surgeon.regions.base import RegionPlan, no_masks
from surgeon.regions.outlines import plan_regions

_PACKAGE = Path(__file__).parent.parent
RECIPE_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes shipped with the package by name, such as `zero_core` or `smollm2/zero_core`."""
    folder = next((folder for folder in RECIPE_FOLDERS if folder.is_dir()), None)
    if folder is None:
        return {}
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def find_recipe(name: str | Path) -> Path:
    """Return the path of a recipe file, or of a shipped recipe by bare name.

    Raises:
        InputError: there is neither.
    """
    path, shipped = Path(os.path.expanduser(name)), shipped_recipes()
    if path.is_file():
        return path
    if str(name) in shipped:
        return shipped[str(name)]
    here = [str(file) for file in Path(path.parent).glob("*.y*ml")]
    close = close_to(str(name), [*shipped, *here])
    remedy = f"did you mean '{close}'?" if close else "`surgeon recipes` lists the shipped ones"
    raise InputError(f"{name}: no such recipe file, and no shipped recipe of that name; {remedy}")


def copy_recipe(name: str, target: str | Path) -> Path:
    """Copy a shipped recipe into a folder, to be edited there.

    Raises:
        InputError: there is no such recipe, or the file exists.
    """
    shipped = shipped_recipes()
    if name not in shipped:
        raise InputError(f"no shipped recipe '{name}'{did_you_mean(name, shipped)}")
    destination = Path(target) / shipped[name].name
    try:
        with destination.open("xb") as file:  # also a link that leads nowhere is something that is there
            file.write(shipped[name].read_bytes())
    except FileExistsError:
        raise InputError(f"{destination} exists already; remove it or copy elsewhere with --output") from None
    return destination


def plan_recipe(
    recipe: str | Path,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
) -> Plan:
    """Read a recipe and the headers of its model, and return what `apply` would do; `device` is looked for, if given.

    One that is elsewhere can be planned for where `SURGEON_DEVICE_MEMORY` says how much memory it has.

    Raises:
        SurgeonError: the recipe, the model, the corpus or the device cannot be used.
    """
    look_again()
    path = find_recipe(recipe)
    file = load_recipe(path, overrides)
    checkpoint = Checkpoint.open(file.recipe.model)
    plan = make_plan(file, checkpoint, Path(output if output is not None else file.recipe.output))
    lacking = check_device(chosen_device(device)) if device is not None and plan.runs_model else None
    if lacking is not None and not isinstance(lacking, NotHere):
        raise lacking
    if lacking is not None and not budgets.device_memory_is_set():
        raise InputError(f"{lacking}; to plan for one elsewhere, say how much memory it has: {budgets.DEVICE}=80G")
    return plan


def expected_steps(plan: Plan, device: str = "cpu") -> list[Step]:
    """Return what `apply` would do, in order, and how many seconds each step may take on this machine.

    Of a device that is not here nothing is known.
    """
    chosen = chosen_device(device) if plan.runs_model else "cpu"
    return steps(plan, chosen) if check_device(chosen) is None else []


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
    variants = {name: _plan_variant(spec, checkpoint, regions) for name, spec in recipe.variants.items()}
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


def _plan_variant(spec: VariantSpec, checkpoint: Checkpoint, regions: Mapping[str, RegionPlan]) -> VariantPlan:
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
    entries = sum(region.entries for region in used.values())
    return VariantPlan(
        operations=[*operations, *held],
        write=write,
        tensors=len(surgery.touched),
        entries_at_most=entries,
        shards=len({info.path for tensor in surgery.touched for info in surgery.stored(tensor)}),
        bytes_to_write=bytes_to_write(write, checkpoint, used.values()),
        blocks_at_most=surgery.most_blocks(entries),
    )
