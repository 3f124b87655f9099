"""The commands that carry a recipe out, or say what that would take: apply, cut, plan, score."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surgeon.cli.options import (
    PROCESSORS,
    DeviceOption,
    DryRunOption,
    JobsOption,
    JsonOption,
    NoVerifyOption,
    OutputOption,
    OverwriteOption,
    RecipeArgument,
    SetOption,
    VerboseOption,
    listed,
    share,
)
from surgeon.console import print_json, print_json_text, progress_to, quiet_libraries, stdout
from surgeon.errors import InputError

if TYPE_CHECKING:
    from surgeon.report.data import Report


def apply(
    recipe: RecipeArgument,
    output: OutputOption = None,
    overrides: SetOption = None,
    jobs: JobsOption = PROCESSORS,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
    push_too: Annotated[
        bool | None, typer.Option("--push/--no-push", help="Push, or not; by default as the recipe says.")
    ] = None,
    no_verify: NoVerifyOption = False,
    overwrite: OverwriteOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run a recipe: score, select, write the variants, verify, report, push.

    RECIPE may also be a variant that was pushed, as hf://org/name or a folder: its weights are made again.
    """
    overrides = [*(overrides or ()), *(["verify=null"] if no_verify else [])]
    published = is_published(recipe)
    if dry_run and not published:
        _show_plan(recipe, output, overrides, device, as_json)
    elif not published:
        from surgeon import api

        quiet_libraries(verbose)
        report = api.apply(
            recipe,
            output=output,
            overrides=overrides,
            device=device,
            jobs=jobs,
            progress=progress_to(as_json),
            push=push_too,
            overwrite=overwrite,
        )
        _show_report(report, str(output if output is not None else report.recipe["output"]), as_json, verbose)
    else:
        _rebuild(recipe, output, overrides, jobs, as_json, dry_run, overwrite)


def is_published(name: str) -> bool:
    """True for a variant that was pushed, which is no recipe: `hf://org/name`, or a folder with a variant's marker."""
    from surgeon.write.marker import MARKER

    return name.startswith("hf://") or (Path(os.path.expanduser(name)) / MARKER).is_file()


def _show_report(report: Report, output: str, as_json: bool, verbose: bool) -> None:
    from surgeon.views.terminal import render, report_view

    if as_json:
        print_json_text(report.model_dump_json(indent=2))
    else:
        render(stdout(), report_view(report, output, verbose))
    if not report.passed:
        raise SystemExit(1)


def _rebuild(
    name: str,
    output: Path | None,
    overrides: list[str] | None,
    jobs: int,
    as_json: bool,
    dry_run: bool,
    overwrite: bool,
) -> None:
    from surgeon.hub.rebuild import rebuild
    from surgeon.ranks.group import started

    if started()[1] > 1:
        raise InputError(f"{name}: a published variant is made again by one process; leave torchrun out")
    if dry_run:
        raise InputError(f"{name}: a published variant has no plan; leave --dry-run out")
    written = rebuild(name, output, overrides or (), jobs, progress_to(as_json), overwrite)
    if as_json:
        print_json({"path": str(written.path), "entries": written.entries, "reused": written.reused})
    else:
        print(f"wrote {written.path}: the weights are those of the manifest")


def cut(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, builtin:NAME or a Hub id.")],
    top: Annotated[str, typer.Option("--top", help="Share of each matrix to cut: 0.01, or 1%.")] = "0.01",
    languages: Annotated[
        str, typer.Option("--languages", help="Codes of the languages to score on; see `surgeon languages`.")
    ] = "ar,es,ru,zh,ko,vi",
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder to write to; out/cut-NAME if not given.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A first picture: only the scored languages, little text, one random control."),
    ] = False,
    dose: Annotated[
        bool,
        typer.Option("--dose", help="Cut 0.01 % to 5 % of core, largest and random entries; none written."),
    ] = False,
    tokens: Annotated[int | None, typer.Option("--tokens", min=2, help="Tokens to measure per language.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Sequences to score per language.")] = None,
    prompts: Annotated[
        int | None, typer.Option("--prompts", min=0, help="Prompts that base and core continue: 0 to 3.")
    ] = None,
    no_verify: NoVerifyOption = False,
    overrides: SetOption = None,
    jobs: JobsOption = PROCESSORS,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Cut the core region out of a model of your own and measure 30 languages, with controls; no recipe needed.

    The recipe that it runs is left in the output: `surgeon apply OUT/recipe.yaml` does the same again.
    """
    from surgeon import api
    from surgeon.plan.first_cut import RECIPE, FirstCut

    wanted = FirstCut(
        model, share(top, "--top"), listed(languages), output, tokens, samples, prompts, quick, not no_verify, dose
    )
    if dry_run:
        settings = api.cut_overrides(wanted, overrides or (), device)
        _show_plan(RECIPE, None, settings, device, as_json)
        return
    quiet_libraries(verbose)
    report = api.cut_model(
        wanted,
        overrides=overrides or (),
        device=device,
        jobs=jobs,
        progress=progress_to(as_json),
        overwrite=overwrite,
    )
    _show_report(report, report.recipe["output"], as_json, verbose)


def plan(
    recipe: RecipeArgument,
    output: OutputOption = None,
    overrides: SetOption = None,
    jobs: JobsOption = PROCESSORS,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    dry_run: DryRunOption = True,
    verbose: VerboseOption = False,
    ranks: Annotated[
        int | None, typer.Option("--ranks", min=1, help="Show what each of N processes under torchrun takes.")
    ] = None,
) -> None:
    """Show what `apply` with the same arguments would do, from headers alone; writes nothing."""
    _show_plan(recipe, output, overrides, device, as_json, ranks)


def _show_plan(
    recipe: str,
    output: Path | None,
    overrides: list[str] | None,
    device: str,
    as_json: bool,
    ranks: int | None = None,
) -> None:
    from surgeon.plan.check import chosen_device
    from surgeon.plan.planning import expected_steps, plan_recipe
    from surgeon.plan.summary import summarize
    from surgeon.plan.texts import open_datasets, short_texts
    from surgeon.views.planned import plan_view
    from surgeon.views.terminal import render

    planned = plan_recipe(recipe, output=output, overrides=overrides or (), device=device)
    notes = [*open_datasets(planned), *short_texts(planned)]
    expected = expected_steps(planned, device)
    chosen = chosen_device(device) if planned.runs_model else "cpu"
    summary = summarize(planned, expected, ranks, notes, chosen)
    if as_json:
        print_json(asdict(summary))
    else:
        render(stdout(), plan_view(summary))


def score(
    recipe: RecipeArgument,
    output: OutputOption = None,
    overrides: SetOption = None,
    jobs: JobsOption = PROCESSORS,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compute the importance scores and regions of a recipe only."""
    if dry_run:
        _show_plan(recipe, output, overrides, device, as_json)
        return
    from surgeon import api

    quiet_libraries(verbose)
    files = api.score(
        recipe,
        output=output,
        overrides=overrides or (),
        device=device,
        jobs=jobs,
        progress=progress_to(as_json),
        overwrite=overwrite,
    )
    if as_json:
        print_json({name: str(path) for name, path in files.items()})
    else:
        for name, path in files.items():
            print(f"{name}: {path}")
