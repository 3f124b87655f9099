"""The command line: parse, call, render. Heavy modules are imported inside the commands that need them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from surgeon.console import print_json, print_pairs, progress_to, quiet_libraries, stdout
from surgeon.ending import run_to_its_end
from surgeon.errors import InputError

app = typer.Typer(
    name="surgeon",
    help="Recipe-driven surgery on language models: find a region, cut it, measure what that did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")
]
OutputOption = Annotated[Path | None, typer.Option("--output", help="Folder to write to, instead of the recipe's.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override one field of the recipe; repeatable.")
]
JobsOption = Annotated[int, typer.Option("--jobs", min=1, help="Threads for copying and hashing.")]
DeviceOption = Annotated[str, typer.Option("--device", help="Where the model runs: cpu, cuda, cuda:1, mps.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout and nothing else there.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Write into a folder that holds another recipe's run, or files of your own.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Plan only; write nothing.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Show more, and the libraries' own log messages.")]
PROCESSORS = os.cpu_count() or 1


def main() -> None:
    """Run the command line and turn our errors into one message and an exit code."""
    run_to_its_end(app)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from surgeon import __version__

        print(f"surgeon {__version__}")
        raise typer.Exit


@app.command()
def apply(
    recipe: RecipeArgument,
    output: OutputOption = None,
    overrides: SetOption = None,
    jobs: JobsOption = PROCESSORS,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
    push_too: Annotated[
        bool | None, typer.Option("--push/--no-push", help="Push, or not; if not given, as the recipe says.")
    ] = None,
    overwrite: OverwriteOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Carry out a recipe: score, select, write the variants, verify, report, push.

    RECIPE may also be a variant that was pushed, as hf://org/name or a folder: its weights are made again.
    """
    from surgeon.hub.rebuild import is_published

    if is_published(recipe):
        _rebuild(recipe, output, overrides, jobs, as_json, dry_run, overwrite)
        return
    if dry_run:
        _show_plan(recipe, output, overrides, as_json)
        return
    from surgeon import api
    from surgeon.report.terminal import render, report_view

    quiet_libraries(verbose)
    report = api.apply(
        recipe,
        output=output,
        overrides=overrides or (),
        device=device,
        jobs=jobs,
        progress=progress_to(as_json),
        push=push_too,
        overwrite=overwrite,
    )
    if as_json:
        print(report.model_dump_json(indent=2))
    else:
        render(stdout(), report_view(report, str(output if output is not None else report.recipe["output"]), verbose))
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

    if dry_run:
        raise InputError(f"{name}: a published variant has no plan; leave --dry-run out")
    written = rebuild(name, output, overrides or (), jobs, progress_to(as_json), overwrite)
    if as_json:
        print_json({"path": str(written.path), "entries": written.entries, "reused": written.reused})
    else:
        print(f"wrote {written.path}: the weights are those of the manifest")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A written variant: out/NAME/variants/VARIANT.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Where to: org/name; made if it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="A branch; made if it is missing.")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the change as a pull request.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; contact nobody.")] = False,
    jobs: JobsOption = PROCESSORS,
    as_json: JsonOption = False,
) -> None:
    """Upload a variant with its model card to the Hugging Face Hub; run again, it resumes."""
    from surgeon.hub.parcel import pack, parcel_data, parcel_text
    from surgeon.hub.push import Target, check_repo_id
    from surgeon.hub.push import push as push_parcel
    from surgeon.report.terminal import pushed_line

    check_repo_id(repo)
    target = Target(repo, revision, private, create_pr)
    parcel = pack(folder, target.address, jobs=jobs)
    if dry_run and as_json:
        print_json(parcel_data(parcel, target.address))
    elif dry_run:
        print(parcel_text(parcel, target.address))
    else:
        with progress_to(as_json).task(f"push {folder.resolve().name}", 1):
            pushed = push_parcel(parcel, target)
        if as_json:
            print_json(pushed.model_dump(mode="json"))
        else:
            print(pushed_line(folder.resolve().name, pushed))


@app.command()
def plan(
    recipe: RecipeArgument,
    output: OutputOption = None,
    overrides: SetOption = None,
    jobs: JobsOption = PROCESSORS,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
    dry_run: DryRunOption = True,
    verbose: VerboseOption = False,
) -> None:
    """Show what `apply` with the same arguments would do, from headers alone; writes nothing."""
    _show_plan(recipe, output, overrides, as_json)


def _show_plan(recipe: str, output: Path | None, overrides: list[str] | None, as_json: bool) -> None:
    from surgeon import api
    from surgeon.report.planned import plan_data, plan_view
    from surgeon.report.terminal import render

    made = api.plan_recipe(recipe, output=output, overrides=overrides or ())
    if as_json:
        print_json(plan_data(made))
    else:
        render(stdout(), plan_view(made))


@app.command()
def score(
    recipe: RecipeArgument,
    output: OutputOption = None,
    overrides: SetOption = None,
    jobs: JobsOption = PROCESSORS,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compute the importance scores and regions of a recipe only."""
    if dry_run:
        _show_plan(recipe, output, overrides, as_json)
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


@app.command()
def verify(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A folder, builtin:NAME or a Hub id.")],
    base: Annotated[str | None, typer.Option("--base", help="A checkpoint to measure beside it.")] = None,
    languages: Annotated[str, typer.Option(help="Comma-separated language codes, or all.")] = "all",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens per language, at most.")] = 512,
    window: Annotated[int, typer.Option(min=2, help="Window in tokens; also the stride.")] = 256,
    prompts: Annotated[list[str] | None, typer.Option("--prompt", help="A text to continue; repeatable.")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to continue each prompt by, at most.")] = 20,
    measure: Annotated[
        bool | None,
        typer.Option("--measure/--no-measure", help="Measure too, or not; if not given, all but output folders are."),
    ] = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check a checkpoint's files, then measure its perplexity on the Declaration in 30 languages.

    CHECKPOINT may also be an output folder: then every file that its manifest names is checked.
    """
    from surgeon import api
    from surgeon.write.integrity import is_output

    if measure is False or (measure is None and is_output(Path(checkpoint).expanduser())):
        checked = api.check_files(checkpoint)
        if as_json:
            print_json({"path": checkpoint, "files": checked})
        elif checked:
            print(f"{checkpoint}: {checked} files, each as it was written")
        else:
            print(f"{checkpoint}: the files fit together; surgeon did not write them, so it knows no hashes of them")
        return
    from surgeon.recipe.schema import VerifySpec
    from surgeon.report.data import generation
    from surgeon.report.measured import perplexities
    from surgeon.report.terminal import measures_view, render
    from surgeon.text.corpora import builtin_corpus

    quiet_libraries(verbose)
    corpus = builtin_corpus("udhr30")
    chosen: Any = "all" if languages == "all" else [word.strip() for word in languages.split(",")]
    for language in chosen if chosen != "all" else ():
        corpus.text(language)
    spec = VerifySpec(languages=chosen, tokens=tokens, window=window, prompts=prompts or [], new_tokens=new_tokens)
    verified = api.verify_checkpoint(
        checkpoint, base=base, corpus=corpus, spec=spec, device=device, progress=progress_to(as_json)
    )
    found = perplexities(verified.measures, next(iter(verified.measures)))
    said = {name: [generation(item) for item in items] for name, items in verified.continuations.items()}
    if as_json:
        data: dict[str, Any] = {
            name: {k: item.model_dump(mode="json") for k, item in row.items()} for name, row in found.items()
        }
        if said:
            data["generations"] = {name: [item.model_dump() for item in items] for name, items in said.items()}
        print_json(data)
    else:
        render(stdout(), measures_view(found, said))


@app.command()
def diff(
    before: Annotated[str | None, typer.Argument(metavar="A", help="A checkpoint, or a region file.")] = None,
    after: Annotated[str | None, typer.Argument(metavar="B", help="Another of the same kind.")] = None,
    regions: Annotated[
        list[str] | None, typer.Option("--region", help="A region file to count inside of; given twice, compared too.")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the changed entries as a region file.")] = None,
    save_patch: Annotated[
        Path | None,
        typer.Option("--save-patch", help="Write the changed entries with B's values, to replay on A."),
    ] = None,
    details: Annotated[bool, typer.Option("--details", "-v", help="Show every layer and tensor.")] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 1 if a tensor or the config differs.")
    ] = False,
    jobs: JobsOption = PROCESSORS,
    as_json: JsonOption = False,
) -> None:
    """Show what differs between two checkpoints, or how far two regions coincide."""
    from surgeon.diff.comparison import compare
    from surgeon.report.differences import diff_data, diff_view, overlap_data, overlap_view
    from surgeon.report.terminal import render

    found = compare(
        before, after, regions=regions or (), save=save, save_patch=save_patch, jobs=jobs, progress=progress_to(as_json)
    )
    if found.checkpoints is not None:
        view = diff_view(found.checkpoints, found.overlap, details, found.patch)
        data, differ = diff_data(found.checkpoints, found.overlap, found.patch), found.checkpoints.differs
    else:
        assert found.overlap is not None
        view = overlap_view(found.overlap, found.names, details)
        data, differ = overlap_data(found.overlap), not found.overlap.identical
    if as_json:
        print_json(data)
    else:
        render(stdout(), view)
    if exit_code and differ:
        raise SystemExit(1)


@app.command()
def inspect(
    target: Annotated[str, typer.Argument(metavar="X", help="A checkpoint or a region file.")],
    as_json: JsonOption = False,
) -> None:
    """Show what a checkpoint or a region file holds, from headers."""
    from surgeon.report.inspection import inspection_view, look_at
    from surgeon.report.terminal import render

    found = look_at(target)
    if as_json:
        print_json(found)
    else:
        render(stdout(), inspection_view(found))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one.")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy it into the current folder, or into --output.")] = False,
    output: OutputOption = None,
) -> None:
    """List, show or copy the shipped recipes."""
    from surgeon import api
    from surgeon.errors import did_you_mean

    shipped = api.shipped_recipes()
    if name is None:
        print_pairs({known: _first_comment(path) for known, path in shipped.items()})
        return
    if copy:
        print(api.copy_recipe(name, output or Path.cwd()))
        return
    if name not in shipped:
        raise InputError(f"no shipped recipe '{name}'{did_you_mean(name, shipped)}")
    print(shipped[name].read_text(encoding="utf-8"), end="")


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    from surgeon.recipe.written import recipe_schema

    print_json(recipe_schema())


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
