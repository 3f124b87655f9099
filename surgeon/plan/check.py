"""Every objection that can be made before work starts.

`check` finds what in a recipe does not fit, from headers alone; `check_ready`, what stands in the way of a run, on this
machine and now. Both tell all they find at once.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.checkpoint.address import is_repository
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.config import whole_number
from surgeon.checkpoint.fingerprint import base_hashes
from surgeon.checkpoint.naming import TOWERS
from surgeon.checkpoint.quantized import codecs_of, plain_dtypes, remarks
from surgeon.checkpoint.ties import is_position_table
from surgeon.errors import CheckpointError, EnvironmentFailure, InputError, Problem, did_you_mean, shorten
from surgeon.memory import require_room_for_torch
from surgeon.operations import open_donor
from surgeon.operations.edits import check_donor, check_patch_base
from surgeon.plan.plan import Plan
from surgeon.plan.texts import file_problems
from surgeon.progress import Progress
from surgeon.recipe.plain_yaml import KeyPath
from surgeon.recipe.reading import RecipeFile
from surgeon.region.patch import Patch
from surgeon.region.region import Region
from surgeon.regions.base import RegionPlan, no_masks
from surgeon.scores.base import Score
from surgeon.text.corpora import Corpus
from surgeon.text.languages import code_meant

_ACCELERATORS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvmap")  # of CUDA, of that in WSL, of ROCm, of Jetson


def check(plan: Plan) -> list[Problem]:
    """Return what in the recipe does not fit the model or the corpus, beside its regions; texts are looked at."""
    return [
        *_language_problems(plan.file, plan.corpus),
        *file_problems(plan),
        *_length_problems(plan.file, plan.checkpoint),
        *_unfound_problems(plan),
        *_donor_problems(plan.file, plan.checkpoint, plan.regions),
        *_format_problems(plan.file, plan.checkpoint),
        *_push_problems(plan.file),
    ]


def check_ready(plan: Plan, device: str, jobs: int) -> None:
    """Make sure that a run can be carried out: measurements, device, bases of patches, room for variants.

    The tensors that patches change are hashed for it, where that has not been done before.

    Raises:
        CheckpointError: a patch was made for another base.
        InputError: there is no such device.
        EnvironmentFailure: the disk is too full, or a package is missing that a measurement takes.
    """
    for item in plan.recipe.verify.measurements if plan.recipe.verify is not None else ():
        item.check()
    lacking, wrong = check_device(device) if plan.runs_model else None, _wrong_bases(plan, jobs)
    if wrong is not None:
        raise CheckpointError(*wrong.said, *(lacking.said if lacking is not None else ()))
    if lacking is not None:
        raise lacking
    _require_space(plan)


class NotHere(InputError):
    """A device that there may be elsewhere."""


def check_device(device: str) -> InputError | None:
    """Return what is wrong with a device, such as that it is not there."""
    if device == "cpu":  # always there, and no reason to load torch
        return None
    require_room_for_torch()
    import torch

    from surgeon.model.arithmetic import set_workspace

    if device.startswith("cuda"):
        set_workspace()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        kinds = ("cpu", "cuda", "mps", "xpu", "auto")
        if device.partition(":")[0] not in kinds:
            meant = "; did you mean 'cuda'?" if device.lower().startswith("gpu") else ""
            return InputError(f"--device {device}: no such device{meant}; write cpu, cuda, cuda:1, mps or auto")
        return NotHere(f"--device {device}: not available here ({str(error).splitlines()[0]})")
    return None


def chosen_device(device: str) -> str:
    """Return the device that `auto` stands for: an accelerator if there is one, else the CPU; others as they are."""
    if device != "auto":
        return device
    if not may_accelerate():
        return "cpu"
    require_room_for_torch()
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def usable_device(device: str) -> str:
    """Return the device that is meant, see `chosen_device`.

    Raises:
        InputError: it is not there.
    """
    chosen = chosen_device(device)
    lacking = check_device(chosen)
    if lacking is not None:
        raise lacking
    return chosen


def may_accelerate() -> bool:
    """Say whether there may be an accelerator; where there surely is none, torch need not be loaded to ask."""
    if not sys.platform.startswith("linux"):
        return True
    return not version("torch").endswith("+cpu") and any(Path(name).exists() for name in _ACCELERATORS)


def most_positions(checkpoint: Checkpoint) -> int | None:
    """Return how many tokens a model with a stored table of positions can read at once; None for all others.

    Other models compute their positions and read on, if ever more badly.
    """
    places = anatomy_of(checkpoint).places  # other towers may have such tables too
    tables = (info for name, info in checkpoint.tensors.items() if is_position_table(name) and len(info.shape) == 2)
    table = next((info for info in tables if places[info.name].role == "embed"), None)
    if table is None:
        return None
    said = whole_number(checkpoint.config, "max_position_embeddings", "n_positions")
    return min(said or table.shape[0], table.shape[0])


def check_length(checkpoint: Checkpoint, tokens: int) -> str | None:
    """Say so if a model cannot read so many tokens at once."""
    most = most_positions(checkpoint)
    if most is None or tokens <= most:
        return None
    return f"{tokens} tokens at a time are more than the {most} positions of {checkpoint.source.name}"


def open_models(sources: Iterable[str | Path], window: int, tokens: int, progress: Progress) -> list[Checkpoint]:
    """Open models to be measured on so many tokens, in windows, and tell what is remarkable of them.

    Raises:
        InputError: one cannot be read, or cannot take as many tokens at once.
    """
    models = [Checkpoint.open(source).downloaded() for source in sources]
    for line in dict.fromkeys(line for model in models for line in remarks(model)):
        progress.note(line)
    for model in models:
        too_long = check_length(model, min(window, tokens))
        if too_long is not None:
            raise InputError(f"--window {window}: {too_long}")
    return models


def _length_problems(file: RecipeFile, checkpoint: Checkpoint) -> Iterator[Problem]:
    lengths: dict[KeyPath, int] = {}
    for name, spec in file.recipe.regions.items():
        if spec.score is not None and spec.score.on_text is not None:
            lengths["regions", name, "score", "sequence_length"] = spec.score.on_text.sequence_length
    verify = file.recipe.verify
    if verify is not None:
        lengths["verify", "window"] = min(verify.window, verify.tokens)
    for key, length in lengths.items():
        too_long = check_length(checkpoint, length)
        if too_long is not None:
            yield file.problem(key, too_long)


def _unfound_problems(plan: Plan) -> Iterator[Problem]:
    """Find regions of tensors that have no place in the model as it is run on text, though it is run for them."""
    for name, region in plan.regions.items():
        scored = region.score is not None and region.score.on_text is not None
        if not scored and plan.recipe.verify is None:
            continue
        places = region.places
        lost = [n for n, where in places.items() if not where.movable or where.kind == "absent"]
        if lost:
            yield plan.file.problem(
                ("regions", name),
                f"{shorten(lost)} in the scope of region '{name}' cannot be found again in the model that "
                f"transformers builds, so it cannot be {'scored' if scored else 'measured'} there: exclude it"
                + ("" if scored else ", or leave out `verify` and measure what is written with `surgeon verify`"),
            )
        towers = [n for n, where in places.items() if where.role in TOWERS] if scored else []
        if towers:
            yield plan.file.problem(
                ("regions", name),
                f"{shorten(towers)} in the scope of region '{name}' is of a tower ({places[towers[0]].role}) that "
                "no text passes, so that a text gives it no score: exclude it, or use a score of weights, such as "
                "magnitude",
            )


def _wrong_bases(plan: Plan, jobs: int) -> CheckpointError | None:
    """Find the patches that variants replay, written or not, and that were made for other tensors."""
    problems: dict[str, None] = {}
    for variant in plan.recipe.variants.values():
        for operation in variant.operations:
            for label, name in operation.takes:
                donor = open_donor(name)
                if not isinstance(donor, Patch):
                    continue
                region = Region({info.name: info.shape for info in plan.regions[label].tensors}, no_masks)
                try:
                    check_patch_base(plan.checkpoint, donor, region, base_hashes(plan.checkpoint, jobs, list(region)))
                except CheckpointError as error:
                    problems |= dict.fromkeys(error.said)
    return CheckpointError(*problems) if problems else None


def _require_space(plan: Plan) -> None:
    """Look whether the variants fit on the disk; those that are there already may be complete."""
    folder = plan.output / "variants"
    missing = [item for name, item in plan.variants.items() if item.write is True and not (folder / name).exists()]
    needed = sum(item.bytes_to_write for item in missing)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise EnvironmentFailure(
            f"{plan.output}: {free / 1e6:,.0f} MB free, but the variants to write need {needed / 1e6:,.1f} MB; make "
            "room, choose another --output, or set `write: false` or `write: patch`"
        )


def _language_problems(file: RecipeFile, corpus: Corpus) -> Iterator[Problem]:
    """Find languages that the corpus lacks, and those of expectations that are not measured."""
    known, verify = corpus.languages, file.recipe.verify
    asked: dict[KeyPath, Sequence[str]] = {}
    for name, spec in file.recipe.regions.items():
        if spec.score is not None and spec.score.on_text is not None:
            asked["regions", name, "score", "languages"] = spec.score.on_text.languages
    if verify is not None and verify.languages != "all":
        asked["verify", "languages"] = verify.languages
    for key, languages in asked.items():
        for i, language in enumerate(languages):
            if language not in known:
                what = f"the corpus has no text for language '{language}'{code_meant(language, known, corpus.language)}"
                yield file.problem((*key, i), what)
    measured = asked.get(("verify", "languages"), known)
    for i, expectation in enumerate(verify.expect if verify is not None else ()):
        if expectation.language is not None and expectation.language not in measured:
            meant = code_meant(expectation.language, measured, corpus.language)
            what = f"language '{expectation.language}' is not measured{meant}"
            yield file.problem(("verify", "expect", i, "language"), what)


def _donor_problems(file: RecipeFile, checkpoint: Checkpoint, regions: Mapping[str, RegionPlan]) -> Iterator[Problem]:
    for name, variant in file.recipe.variants.items():
        for i, operation in enumerate(variant.operations):
            for label, donor in operation.takes:
                shapes = {info.name: info.shape for info in regions[label].tensors}
                try:
                    check_donor(checkpoint, donor, Region(shapes, no_masks))
                except InputError as error:
                    key = "base" if donor == getattr(operation, "base", None) else "from"
                    yield file.problem(("variants", name, "operations", i, key), str(error))
    for name, spec in file.recipe.regions.items():
        if spec.score is not None:
            yield from _compared_problems(file, checkpoint, regions[name], spec.score)


def _compared_problems(file: RecipeFile, checkpoint: Checkpoint, region: RegionPlan, score: Score) -> Iterator[Problem]:
    """Find what is wrong with the models that a region's score compares with."""
    shapes = {info.name: info.shape for info in region.tensors}
    for key, other in score.compared_with.items():
        try:
            check_donor(checkpoint, other, Region(shapes, no_masks))
            patch = isinstance(open_donor(other), Patch)
            wrong = f"{other} is a patch, which does not hold the entries that it leaves unchanged" if patch else None
        except InputError as error:
            wrong = str(error)
        if wrong is not None:
            yield file.problem(("regions", region.name, "score", key), wrong)


def _format_problems(file: RecipeFile, checkpoint: Checkpoint) -> Iterator[Problem]:
    """Find variants that cannot be written as they say: plainly, or in the format of quantized weights."""
    decoded = plain_dtypes(checkpoint)
    only_read = [codec.kind for codec in codecs_of(checkpoint) if not codec.encodes]
    for name, variant in file.recipe.variants.items():
        if variant.dequantized:
            if not decoded:
                yield file.problem(("variants", name, "write"), "no weight is quantized here; say `write: true`")
            elif decoded != [variant.plain_dtype]:
                what = f"the weights decode to {', '.join(decoded)}, by config.json; say `{{dtype: {decoded[0]}}}`"
                yield file.problem(("variants", name, "write", "dtype"), what)
        elif only_read and variant.operations:
            what = f"weights in {only_read[0]} are read, and not written; say `write: {{dtype: {decoded[0]}}}`"
            yield file.problem(("variants", name), what)


def _push_problems(file: RecipeFile) -> Iterator[Problem]:
    recipe = file.recipe
    if recipe.push is None:
        return
    for i, name in enumerate(recipe.push.variants or ()):
        key = ("push", "variants", i)
        if name not in recipe.variants:
            yield file.problem(key, f"no variant '{name}'{did_you_mean(name, recipe.variants)}")
        elif recipe.variants[name].write is False:
            yield file.problem(key, f"variant '{name}' is not written, so it cannot be pushed")
    names = recipe.pushed_variants()
    if not names:
        yield file.problem(("push",), "no variant is written, so there is nothing to push")
    targets = [recipe.push.place(name) for name in names]
    if len(set(targets)) < len(targets):
        what = 'several variants would go to one place; put {variant} into `repo`, or `revision: "{variant}"`'
        yield file.problem(("push", "repo"), what)
    for repo in dict.fromkeys(repo for repo, _ in targets):
        if not is_repository(repo):
            yield file.problem(("push", "repo"), f"'{repo}' cannot name a repository; it has the form org/name")
