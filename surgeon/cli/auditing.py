"""The command that says what a derivative kept of its parent: audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgeon.cli.options import DeviceOption, JsonOption, OutputOption, VerboseOption, listed
from surgeon.console import print_json, progress_to, quiet_libraries
from surgeon.errors import InputError
from surgeon.visible import visible


def audit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, builtin:NAME or a Hub id.")],
    base: Annotated[str, typer.Option("--base", help="The model that it was made from; the tokenizer may differ.")],
    languages: Annotated[
        str, typer.Option(help="Comma-separated codes of the shipped languages; all; or none.")
    ] = "all",
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            "--text", help="A further language: CODE.txt with one paragraph per line, or a folder of them; repeatable."
        ),
    ] = None,
    paragraphs: Annotated[int, typer.Option(min=2, help="Paragraphs per language, at most.")] = 40,
    prompts: Annotated[int, typer.Option(min=0, help="Beginnings per language to continue; 0: none.")] = 4,
    gate: Annotated[
        str | None, typer.Option("--gate", help="Exit with 1 if more languages are lost or worse: lost=0,worse=3.")
    ] = None,
    output: OutputOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Say by language what a quantized, pruned, merged or trained model kept of another: kept, worse or lost.

    With --output it writes audit.html, audit.svg, audit.json, badge.svg, and card.md, a section for the model card.
    """
    from surgeon.auditing import audit as run
    from surgeon.auditing import texts_for
    from surgeon.ranks.group import started
    from surgeon.report.audit import audit_data, change_line, verdict_line, write_audit

    most = _gate(gate)
    if started()[1] > 1:
        raise InputError("surgeon audit runs in one process: leave torchrun out")
    quiet_libraries(verbose)
    corpus, chosen = texts_for(
        [] if languages == "none" else None if languages == "all" else listed(languages), texts or []
    )
    outcome = run(
        model, base, corpus=corpus, languages=chosen, paragraphs=paragraphs, prompts=prompts, device=device,
        progress=progress_to(as_json),
    )  # fmt: skip
    files = write_audit(outcome, output) if output is not None else []
    passed = all(outcome.counts[verdict] <= bound for verdict, bound in most.items())
    if as_json:
        print_json(audit_data(outcome) | {"passed": passed})
    else:
        for one in outcome.changes:
            print(visible(change_line(outcome, one)))
        print("\n".join([verdict_line(outcome), *(f"{note}." for note in outcome.notes), *map(str, files)]))
        for verdict, bound in most.items():
            mark = "held  " if outcome.counts[verdict] <= bound else "FAILED"
            print(f"{mark}  languages {verdict}: {outcome.counts[verdict]}, expected at most {bound}")
    if not passed:
        raise SystemExit(1)


def _gate(text: str | None) -> dict[str, int]:
    found = {}
    for part in listed(text or ""):
        name, _, bound = part.partition("=")
        if name not in ("lost", "worse") or not bound.isdigit():
            raise InputError(f"--gate {part}: write how many languages may be lost or worse, as lost=0,worse=3")
        found[name] = int(bound)
    return found
