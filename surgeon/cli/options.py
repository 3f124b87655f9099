"""Arguments and options that several commands have, the same everywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from surgeon.errors import InputError

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")
]
OutputOption = Annotated[Path | None, typer.Option("--output", help="Folder to write to, instead of the recipe's.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override one field of the recipe; repeatable.")
]
JobsOption = Annotated[int, typer.Option("--jobs", min=1, help="Threads for copying and hashing.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", help="Where the model runs: cpu, cuda, cuda:1, mps, or auto (an accelerator if there is one)."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout and nothing else there.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Write into a folder that holds another recipe's run, or files of your own.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Plan only; write nothing.")]
NoVerifyOption = Annotated[
    bool, typer.Option("--no-verify", help="Measure nothing: find the regions and write the variants.")
]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Show more, and the libraries' own log messages.")]
PROCESSORS = os.cpu_count() or 1


def share(text: str, option: str) -> float:
    """Read a share, such as 0.01, or one in percent, such as 1%."""
    number = text.strip().removesuffix("%")
    try:
        return float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        raise InputError(f"{option} {text}: write a share such as 0.01, or 1%") from None


def listed(text: str) -> list[str]:
    """Split a list that is given with commas."""
    return [word for word in (part.strip() for part in text.split(",")) if word]
