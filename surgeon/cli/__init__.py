"""The command line: parse, call, render. Heavy modules are imported inside the commands that need them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

from surgeon.cli import auditing, looking, running, sharing, shipped, talking
from surgeon.ending import run_to_its_end
from surgeon.memory import hand_back_large_blocks

app = typer.Typer(
    name="surgeon",
    help="Recipe-driven surgery on language models: find a region, cut it, measure what that did.",
    epilog="Example: surgeon apply zero_core",
    no_args_is_help=True,
    rich_markup_mode=None,  # drawing boxes would take longer to import than all else that help needs
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Every command, with an example that its help shows.
COMMANDS: tuple[tuple[Callable[..., Any], str], ...] = (
    (running.apply, "surgeon apply zero_core --set model=./my-model --output out/mine"),
    (running.cut, "surgeon cut ./my-model --quick"),
    (running.plan, "surgeon plan zero_core --set model=./my-model"),
    (running.score, "surgeon score scores --output out/scores"),
    (looking.verify, "surgeon verify out/variants/core-zeroed --base builtin:tiny30 --languages ar,en"),
    (auditing.audit, "surgeon audit out/variants/core-zeroed --base builtin:tiny30 --languages ar,en --gate lost=0"),
    (looking.diff, "surgeon diff builtin:tiny30 out/variants/core-zeroed --region out/regions/core.region.safetensors"),
    (looking.compare, "surgeon compare out/one out/other --output page"),
    (looking.report, "surgeon report out --space my-space"),
    (looking.inspect, "surgeon inspect out/regions/core.region.safetensors"),
    (talking.chat, 'surgeon chat out --prompt "Everyone has the right to"'),
    (sharing.push, "surgeon push out/variants/core-zeroed org/core-zeroed --dry-run"),
    (shipped.recipes, "surgeon recipes zero_core --copy"),
    (shipped.languages, "surgeon languages"),
    (shipped.choice, "surgeon choice ./tasks --languages ar,en"),
    (shipped.cache, "surgeon cache --clear"),
    (shipped.schema, "surgeon schema > recipe.schema.json"),
)
for _command, _example in COMMANDS:
    # The whole first line: what a parser makes of a docstring by itself ends in the middle.
    _line = (_command.__doc__ or "").partition("\n")[0]
    app.command(epilog=f"Example: {_example}", short_help=_line)(_command)


def main() -> None:
    """Run the command line and turn our errors into one message and an exit code."""
    # Torch's threads sleep while they wait for one another. By default they spin, which on a machine that is busy with
    # anything else takes ten times as long; it makes no difference to any figure.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    hand_back_large_blocks()
    run_to_its_end(app)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False) -> None:
    if version:
        from surgeon import __version__

        print(f"surgeon {__version__}")
        raise typer.Exit
