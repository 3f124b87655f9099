"""The command that lets base and variants speak: chat."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgeon import inside
from surgeon.cli.options import DeviceOption, JsonOption, VerboseOption
from surgeon.console import print_json, progress_to, quiet_libraries, stdout
from surgeon.ending import Interrupted
from surgeon.errors import InputError

if TYPE_CHECKING:
    from surgeon.chat.speakers import Speakers


def chat(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="An output folder of `surgeon apply`.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Answer this and end; repeatable. Without it, prompts are read, one per line."),
    ] = None,
    variants: Annotated[
        list[str] | None, typer.Option("--variant", help="A variant that answers beside the base; repeatable.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer, at most.")] = 40,
    plain: Annotated[
        bool, typer.Option("--plain", help="Continue prompts as they are, even if the model has a chat template.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve OUT's page with a box to type into, for this machine only.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of --serve; 0: any free one.")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Let the base and its variants answer the same prompts side by side, each prompt on its own."""
    from surgeon.chat.speakers import open_output
    from surgeon.plan.check import usable_device

    quiet_libraries(verbose)
    speakers = open_output(output, variants or (), device=usable_device(device), new_tokens=new_tokens, plain=plain)
    if serve:
        _serve(speakers, Path(os.path.expanduser(output)) / "report.html", port)
        return
    answered = []
    for prompt in prompts or _typed(speakers):
        answers = speakers.answer(prompt, progress_to(as_json or not prompts))
        if as_json:
            answered.append({"prompt": prompt, "answers": {name: vars(item) for name, item in answers.items()}})
        else:
            _show(prompt, answers)
    if as_json:
        print_json(answered)


def _typed(speakers: Speakers) -> Iterator[str]:
    """Read prompts from stdin, a line each, until it ends."""
    asking = sys.stdin.isatty()
    if asking:
        print(f"{', '.join(speakers.names)} answer; end with Ctrl-D", file=sys.stderr)
    while True:
        if asking:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def _show(prompt: str, answers: Mapping[str, Any]) -> None:
    from surgeon.views.terminal import SideBySide, render

    render(stdout(), SideBySide(prompt, {name: (item.continuation, item.stopped) for name, item in answers.items()}))


def _serve(speakers: Speakers, page: Path, port: int) -> None:
    from surgeon.chat.server import LOOPBACK, make_server, page_with_box
    from surgeon.write.marker import read_own_text

    if not inside.is_plain_file(page.parent, page.name):
        raise InputError(f"{page}: no page there; `surgeon apply` writes it")
    server = make_server(page_with_box(read_own_text(page, "the page")), speakers.answer, port)
    print(f"http://{LOOPBACK}:{server.server_port}/ ({', '.join(speakers.names)}); end with Ctrl-C", flush=True)
    with server, suppress(Interrupted):  # that is how it is meant to end
        server.serve_forever()
