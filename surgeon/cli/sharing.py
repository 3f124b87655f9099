"""The command that publishes: push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgeon.cli.options import PROCESSORS, JobsOption, JsonOption
from surgeon.console import print_json, progress_to


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A written variant: out/NAME/variants/VARIANT, or its patch file.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The repository, org/name; made if it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="A branch; made if it is missing.")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the change as a pull request.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; contact nobody.")] = False,
    jobs: JobsOption = PROCESSORS,
    as_json: JsonOption = False,
) -> None:
    """Upload a variant with its model card to the Hugging Face Hub; the same command resumes."""
    from surgeon.hub.parcel import pack, parcel_data, parcel_text
    from surgeon.hub.push import Target, check_repo_id
    from surgeon.hub.push import push as push_parcel
    from surgeon.views.terminal import pushed_line

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
