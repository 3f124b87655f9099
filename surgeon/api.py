"""The Python interface: one function per command, data in and data out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import refuse_changed, stored_hash
from surgeon.checkpoint.quantized import remarks
from surgeon.checkpoint.store import reclaim_cache
from surgeon.errors import InputError
from surgeon.memory import require_room_for_figures, require_room_for_torch
from surgeon.model.arithmetic import resolve_precision
from surgeon.model.results import Verification
from surgeon.model.workplace import Workplace
from surgeon.plan.check import check_ready, chosen_device, open_models, usable_device
from surgeon.plan.duration import steps
from surgeon.plan.first_cut import RECIPE as FIRST_CUT
from surgeon.plan.first_cut import FirstCut, rows_at_a_time
from surgeon.plan.plan import Plan
from surgeon.plan.planning import copy_recipe, expected_steps, find_recipe, make_plan, plan_recipe, shipped_recipes
from surgeon.progress import Progress
from surgeon.ranks import joined
from surgeon.ranks.group import own_device, started
from surgeon.recipe.schema import VerifySpec
from surgeon.report.data import Report
from surgeon.report.manifest import differences
from surgeon.reporting import make_report, unchanged_report
from surgeon.run import Run, publish_variants, save_regions, seal, stage_variants
from surgeon.text.corpora import Corpus, builtin_corpus
from surgeon.verifying import verify_variants
from surgeon.write.marker import MANIFEST, MARKER, RECIPE, VARIANTS, check_written, is_output, read_own
from surgeon.write.output import output_lock, write_samples

Found = TypeVar("Found")

__all__ = [
    "apply", "check_files", "copy_recipe", "cut_model", "cut_overrides", "expected_steps", "find_recipe", "plan_recipe",
    "score", "shipped_recipes", "verify_checkpoint",
]  # fmt: skip


def apply(
    recipe: str | Path,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    jobs: int | None = None,
    progress: Progress | None = None,
    push: bool | None = None,
    overwrite: bool = False,
) -> Report:
    """Carry out a recipe: score, select, write the variants, verify, report, and push if the recipe says so.

    `device` is `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`: an accelerator if there is one. `push` False leaves the
    pushing out, True insists on it; nothing is pushed unless all expectations held.
    Everything is written below `output` (the recipe's, if not given); a folder with another recipe's run, or with
    files that surgeon did not write, only if `overwrite` is set. Scores, regions and variants that an earlier or
    interrupted run finished are reused. `Report.passed` says whether the expectations held.

    Raises:
        SurgeonError: something in the recipe, the model, or the environment; nothing is left half written.
    """

    def planned() -> Plan:
        plan = plan_recipe(recipe, output=output, overrides=overrides)
        if push and plan.recipe.push is None:
            raise InputError("the recipe has no `push:`; add one, or give its repository with --set push.repo=org/name")
        require_room_for_figures()  # now, and not after an hour
        return plan

    def work(place: Workplace) -> Report:
        run = _prepared(place, planned, progress or Progress())
        expected = steps(run.plan, place.device) if run.progress.console is not None else []
        with output_lock(run.plan.output, run.plan.recipe.name, overwrite), run.progress.steps(expected):
            return _carry_out(run, push, {} if overrides else _manifest_beside(run.plan.file.path))

    return carried_out(device, jobs, work)


def _prepared(place: Workplace, planned: Callable[[], Plan], progress: Progress, keep: bool = False) -> Run:
    """Plan, download a model of which more than parts are needed, and look at all that may stand in the way."""
    began = time.perf_counter()
    with progress.task("plan, texts, libraries", 3, least=30) as advance:
        plan = planned()
        if plan.checkpoint.is_remote and plan.needs_all_weights:
            plan = make_plan(plan.file, plan.checkpoint.downloaded(), plan.output)
        advance(1)
        place.device = chosen_device(place.device) if plan.runs_model or place.device != "auto" else "cpu"
        run = Run(plan, place, progress, began, keep=keep)
        check_ready(plan, place.device, place.jobs)
        advance(1)
        notes = run.check_texts()
    for line in [*(remarks(plan.checkpoint) if keep else plan.remarks), *notes]:
        progress.note(line)
    return run


def _manifest_beside(recipe: Path) -> Mapping[str, Any]:
    """Return the manifest of the run that a recipe was left by, if it was."""
    return read_own(recipe.parent / MANIFEST) if recipe.name == RECIPE else {}


def _carry_out(run: Run, push: bool | None, repeated: Mapping[str, Any]) -> Report:
    """Score, select, write, verify, report and push; what differs from the run that is `repeated` is said."""
    plan, progress, out = run.plan, run.progress, run.plan.output
    if plan.idle:
        progress.note(f"neither written nor measured, so without effect: {', '.join(plan.idle)}")
    reclaim_cache()
    run.token_counts.keep()
    before = read_own(out / MANIFEST)
    run.refuse_changed()  # from here on donors stay what they are, too
    region_files = save_regions(run)
    run.count_unwritten()
    staged = stage_variants(run, region_files)
    figures, method = verify_variants(run)  # meanwhile the disk takes what was staged
    with progress.task("page", 1):
        report = make_report(run, staged, figures, method)
        earlier = unchanged_report(out, report, before)
        written = publish_variants(run, staged, report if earlier is None else None)
        outputs = {path: stored_hash(path) for path in region_files.values()}
        outputs |= {path: digest for item in written.values() for path, digest in item.files.items()}
        outputs |= write_samples(out, figures.figures)
        run.timings["total"] = round(time.perf_counter() - run.began, 3)
        report = report.model_copy(update={"timings": run.timings if earlier is None else earlier.timings})
        sealed = dict(before) if earlier is not None else seal(run, report, outputs, before)
    for line in differences(repeated, sealed):
        progress.note(line)
    if push is not False and report.passed and plan.recipe.push is not None:
        from surgeon.hub.push import push_variants  # only here: most runs push nothing

        report = report.model_copy(update={"pushed": push_variants(plan.recipe, out, run.place.jobs, progress)})
        seal(run, report, outputs, sealed)
    return report


def carried_out(device: str, jobs: int | None, work: Callable[[Workplace], Found]) -> Found:
    """Return what comes of `work`, which is given a place to work at; of several processes one does it, all help."""
    number, size = started()
    device, jobs = device if size == 1 else chosen_device(device), jobs or os.cpu_count() or 1
    with joined(device) as team:
        if team is None:
            return work(Workplace(device, jobs))
        place = Workplace(own_device(device), jobs, team)
        if number > 0:
            return cast(Found, team.help(place))
        result = work(place)
        team.end(result)
        return result


def cut_overrides(wanted: FirstCut, overrides: Sequence[str] = (), device: str = "auto") -> list[str]:
    """Return the overrides that make the shipped recipe, `FIRST_CUT`, one for a model and a machine at hand.

    `overrides` of the user's own go last, so that they win.

    Raises:
        SurgeonError: the model cannot be read, or a language is not in the corpus.
    """
    device = usable_device(device)
    checkpoint = Checkpoint.open(wanted.model)
    rows = rows_at_a_time(checkpoint, device)
    return [*wanted.overrides(checkpoint, builtin_corpus("udhr30").languages, rows), *overrides]


def cut_model(
    wanted: FirstCut,
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    jobs: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Report:
    """Find the core of a model, cut it out, and measure that beside controls; by `apply`, and without a recipe.

    The recipe is left in the output, where `apply` takes it as any other.

    Raises:
        SurgeonError: see `apply`.
    """
    settings = cut_overrides(wanted, overrides, device)
    return apply(FIRST_CUT, overrides=settings, device=device, jobs=jobs, progress=progress, overwrite=overwrite)


def score(
    recipe: str | Path,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    jobs: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Compute the scores and regions of a recipe only; returns the region files by name."""

    def work(place: Workplace) -> dict[str, Path]:
        planned = partial(plan_recipe, recipe, output=output, overrides=overrides)
        run = _prepared(place, planned, progress or Progress(), keep=True)
        with output_lock(run.plan.output, run.plan.recipe.name, overwrite):
            reclaim_cache()
            return save_regions(run)

    return carried_out(device, jobs, work)


def verify_checkpoint(
    checkpoint: str | Path,
    *,
    base: str | Path | None = None,
    corpus: Corpus,
    spec: VerifySpec,
    device: str = "auto",
    progress: Progress | None = None,
) -> Verification:
    """Check a checkpoint's files, also against its marker and manifest, then measure it per language.

    It also continues `spec.prompts`. The result is under `checkpoint`, or under the names of an output folder's
    variants; that of `base` comes first, under `base`, if one is given.

    Raises:
        SurgeonError: files are damaged, the corpus lacks a language, there is no such device, or the window is too
            long.
    """
    progress = progress or Progress()
    languages = corpus.languages if spec.languages == "all" else list(dict.fromkeys(spec.languages))

    def work(place: Workplace) -> Verification:
        require_room_for_torch()
        from surgeon.measure.verification import verify
        from surgeon.model.editing import Variant

        place.device = usable_device(place.device)
        folder = Path(os.path.expanduser(checkpoint))
        variants = _written_variants(folder)
        if variants:
            check_written(folder, place.jobs)
        named: dict[str, str | Path] = {"base": base} if base is not None else {}
        named |= variants or {"checkpoint": checkpoint}
        models = open_models(named.values(), spec.window, spec.tokens, progress)
        for model in models:
            check_written(model.folder, place.jobs)
        figures = Verification()
        for name, model in zip(named, models, strict=True):
            stack = place.load(model, resolve_precision("auto"))
            one = verify(stack, [Variant(name)], corpus, languages, spec, progress, team=place.team)
            figures = figures.joined(one)
            refuse_changed(model)
        return figures

    return carried_out(device, None, work)


def check_files(written: str | Path, jobs: int | None = None) -> int:
    """Check every file that the manifest of an output folder, or the marker of a variant, names; measures nothing.

    Returns:
        How many files were compared with their SHA-256; 0 for a checkpoint that surgeon did not write, of which only
        the headers are checked.

    Raises:
        SurgeonError: files are missing or damaged, or nothing is there.
    """
    folder = Path(os.path.expanduser(written))
    if not folder.exists():
        folder = Checkpoint.open(written).downloaded().folder
    checked = check_written(folder, jobs or os.cpu_count() or 1)
    for checkpoint in _written_variants(folder).values() if checked else (written,):
        Checkpoint.open(checkpoint)
    return checked


def _written_variants(folder: Path) -> dict[str, str | Path]:
    """Return the whole checkpoints of an output folder by name; {} if it is none."""
    if not is_output(folder):
        return {}
    return {path.name: str(path) for path in sorted((folder / VARIANTS).glob("*")) if (path / MARKER).is_file()}
