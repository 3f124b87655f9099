"""The commands that look at what is there, and change nothing: verify, diff, inspect."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgeon.cli.options import PROCESSORS, DeviceOption, JobsOption, JsonOption, VerboseOption, listed
from surgeon.console import print_json, progress_to, quiet_libraries, stdout

if TYPE_CHECKING:
    from surgeon.text.corpora import Corpus


def verify(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A folder, builtin:NAME or a Hub id.")],
    base: Annotated[str | None, typer.Option("--base", help="A checkpoint to compare with.")] = None,
    corpus: Annotated[
        str,
        typer.Option("--corpus", help="Texts, as a recipe names them: builtin:NAME, or {ar: ar.txt, fr: fr.txt}."),
    ] = "builtin:udhr30",
    languages: Annotated[str, typer.Option(help="Comma-separated language codes, or all.")] = "all",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens per language, at most.")] = 512,
    window: Annotated[int, typer.Option(min=2, help="Window in tokens; also the stride.")] = 256,
    prompts: Annotated[list[str] | None, typer.Option("--prompt", help="A text to continue; repeatable.")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to continue each prompt by, at most.")] = 20,
    measure: Annotated[
        bool | None,
        typer.Option(
            "--measure/--no-measure", help="Measure too, or not; by default checkpoints yes, output folders no."
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check a checkpoint's files, then measure its perplexity on the Declaration in 30 languages, or on other texts.

    CHECKPOINT may also be an output folder: then every file that its manifest names is checked.
    """
    from surgeon import api
    from surgeon.write.marker import is_output

    if measure is False or (measure is None and is_output(Path(os.path.expanduser(checkpoint)))):
        checked = api.check_files(checkpoint)
        if as_json:
            print_json({"path": checkpoint, "files": checked})
        elif checked:
            print(f"{checkpoint}: {checked} files, each as it was written")
        else:
            print(f"{checkpoint}: the files fit together; surgeon did not write them, so it knows no hashes of them")
        return
    from surgeon.recipe.corpus import open_corpus
    from surgeon.recipe.reading import corpus_from
    from surgeon.recipe.schema import VerifySpec

    quiet_libraries(verbose)
    texts = open_corpus(corpus_from(corpus, "--corpus"))
    chosen: Any = "all" if languages == "all" else listed(languages)
    for language in chosen if chosen != "all" else ():
        texts.text(language)
    spec = VerifySpec(languages=chosen, tokens=tokens, window=window, prompts=prompts or [], new_tokens=new_tokens)
    verified = api.verify_checkpoint(
        checkpoint, base=base, corpus=texts, spec=spec, device=device, progress=progress_to(as_json)
    )
    _show_measures(verified, as_json, texts)


def _show_measures(verified: Any, as_json: bool, texts: Corpus) -> None:
    from surgeon.report.measured import perplexities
    from surgeon.views.terminal import measures_view, render

    found = perplexities(verified.measures, next(iter(verified.measures)))
    if as_json:
        data: dict[str, Any] = {
            name: {k: item.model_dump(mode="json") for k, item in row.items()} for name, row in found.items()
        }
        if verified.continuations:
            data["generations"] = {
                name: [asdict(item) for item in items] for name, items in verified.continuations.items()
            }
        print_json(data)
    else:
        render(stdout(), measures_view(found, verified.continuations, texts.language))


def diff(
    before: Annotated[str | None, typer.Argument(metavar="A", help="A checkpoint, or a region file.")] = None,
    after: Annotated[str | None, typer.Argument(metavar="B", help="Another of the same kind.")] = None,
    regions: Annotated[
        list[str] | None,
        typer.Option(
            "--region", help="Count changes inside this region file; given twice, the regions are compared too."
        ),
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
    from surgeon.views.differences import comparison_data, comparison_view
    from surgeon.views.terminal import render

    found = compare(
        before, after, regions=regions or (), save=save, save_patch=save_patch, jobs=jobs, progress=progress_to(as_json)
    )
    if as_json:
        print_json(comparison_data(found))
    else:
        render(stdout(), comparison_view(found, details))
    if exit_code and found.differs:
        raise SystemExit(1)


def compare(
    outputs: Annotated[list[Path], typer.Argument(metavar="OUT...", help="Output folders of `apply` or `cut`.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for the page and its figures.")] = Path("page"),
    as_json: JsonOption = False,
) -> None:
    """Draw several runs on one page: models, checkpoints of a training run, recipes; one colour per run."""
    from surgeon.report.compared import comparison_data, comparison_table, open_runs, write_comparison
    from surgeon.views.terminal import grid_table, render, told

    runs = open_runs(outputs)
    page = write_comparison(runs, output)
    if as_json:
        print_json({"page": str(page), "runs": comparison_data(runs)})
        return
    render(stdout(), grid_table(comparison_table(runs)))
    render(stdout(), told(f"page {page}"))


def report(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="An output folder of `surgeon apply` or `cut`.")],
    space: Annotated[
        Path | None, typer.Option("--space", help="Write a folder that is a static Space on the Hub, ready to push.")
    ] = None,
) -> None:
    """Draw the page of a run again from its report.json, or write it as a static Space."""
    from surgeon.report.data import Report
    from surgeon.report.html import write_page
    from surgeon.report.published import write_space

    files = write_space(output, space) if space is not None else write_page(Report.load(output), output)
    print(files[0])


def inspect(
    target: Annotated[
        str,
        typer.Argument(metavar="X", help="A checkpoint, region, patch or freeze bundle; an output folder; a recipe."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what a checkpoint, region file, output folder, report or recipe holds; of weights only headers are read."""
    from surgeon.views.inspection import inspection_view, look_at
    from surgeon.views.terminal import render

    inspection = look_at(target)
    if as_json:
        print_json(inspection)
    else:
        render(stdout(), inspection_view(inspection))
