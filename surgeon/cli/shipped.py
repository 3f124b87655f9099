"""The commands that show what comes with the package, or lies in the cache: recipes, languages, cache, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgeon.cli.options import JsonOption, OutputOption
from surgeon.console import print_json, print_pairs, stdout
from surgeon.errors import InputError


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one.")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy it into the current folder, or into --output.")] = False,
    output: OutputOption = None,
) -> None:
    """List, show or copy the shipped recipes."""
    from surgeon.errors import did_you_mean
    from surgeon.plan.planning import copy_recipe, shipped_recipes

    shipped = shipped_recipes()
    if name is None:
        print_pairs({known: _first_comment(path) for known, path in shipped.items()})
        return
    if copy:
        print(copy_recipe(name, output or Path.cwd()))
        return
    if name not in shipped:
        raise InputError(f"no shipped recipe '{name}'{did_you_mean(name, shipped)}")
    print(shipped[name].read_text(encoding="utf-8"), end="")


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


_HEADS = ("code", "name", "script", "family")


def languages(as_json: JsonOption = False) -> None:
    """List the languages of the shipped texts: code, name, script, family."""
    from surgeon.text.corpora import builtin_corpus
    from surgeon.text.languages import language
    from surgeon.views.terminal import render, table

    known = {code: language(code) for code in builtin_corpus("udhr30").languages}
    if as_json:
        print_json({code: {"name": it.name, "script": it.script, "family": it.family} for code, it in known.items()})
        return
    rows = table("Languages of builtin:udhr30", *_HEADS, words=_HEADS)
    for code, it in known.items():
        rows.add_row(code, it.name, it.script, it.family)
    render(stdout(), rows)


def choice(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write the tasks to.")],
    languages: Annotated[str, typer.Option(help="Comma-separated codes, or all.")] = "all",
    items: Annotated[int, typer.Option(min=1, help="Questions per language, at most.")] = 16,
) -> None:
    """Write the questions of `verify: {choice: true}` as tasks of lm-evaluation-harness, to ask them of any model."""
    from surgeon.cli.options import listed
    from surgeon.measure.choice import write_choice_tasks
    from surgeon.text.corpora import builtin_corpus

    corpus = builtin_corpus("udhr30")
    codes = corpus.languages if languages == "all" else listed(languages)
    write_choice_tasks(folder, corpus, codes, items)
    print(f"{len(codes)} tasks, tagged surgeon_choice: lm_eval run --include_path {folder} --tasks surgeon_choice ...")


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it, except what a run is using.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what is kept between runs, where, and how large it is; with --clear, remove it."""
    from surgeon.checkpoint import store
    from surgeon.checkpoint.store import cache_folder, reclaim_cache
    from surgeon.report.words import size
    from surgeon.views.terminal import render, table, told

    before = store.contents()
    if clear:
        store.clear()
        reclaim_cache(also_unfinished=True)
    contents = store.contents()
    kept, freed = (sum(shelf.bytes for shelf in shelves) for shelves in (contents, before))
    freed -= kept
    if as_json:
        data = {shelf.name: {"holds": shelf.holds, "files": shelf.files, "bytes": shelf.bytes} for shelf in contents}
        print_json({"folder": str(cache_folder()), "bytes": kept, "freed": freed, "kept": data})
        return
    rows = table(f"Kept in {cache_folder()}", "folder", "holds", "files", "size", words=["folder", "holds"])
    for shelf in contents:
        rows.add_row(shelf.name, shelf.holds, f"{shelf.files:,}", size(shelf.bytes))
    rows.add_row("all", "", f"{sum(shelf.files for shelf in contents):,}", size(kept))
    render(stdout(), rows)
    if clear:
        render(stdout(), told(f"{size(freed)} freed"))


def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    from surgeon.recipe.schema import recipe_schema

    print_json(recipe_schema())
