"""What the command line writes to: results on stdout, progress on stderr, and nothing of the libraries below."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from surgeon.ranks import group
from surgeon.visible import json_escaped, visible

if TYPE_CHECKING:
    from rich.console import Console

    from surgeon.progress import Progress


def print_pairs(pairs: dict[str, str]) -> None:
    """Print names and what they mean: wrapped on a terminal, a line each into a pipe."""
    from rich.table import Table

    console = stdout()
    if not console.is_terminal:
        for name, meaning in pairs.items():
            print(visible(f"{name:<24} {meaning}"))
        return
    rows = Table.grid(padding=(0, 2))
    for name, meaning in pairs.items():
        rows.add_row(name, meaning)
    console.print(rows, highlight=False)


def print_json(data: Any) -> None:
    """Print a result as JSON."""
    from surgeon.json_text import to_json

    print_json_text(to_json(data))


def print_json_text(text: str) -> None:
    """Print JSON text, with escapes for what a terminal would obey; it stands for the same data."""
    text = "\n".join(json_escaped(line) for line in text.split("\n"))
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # what the stream cannot hold stands as JSON's own escapes
        text = "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)
    print(text)


def stdout() -> Console:
    """Return the console on stdout."""
    from rich.console import Console

    return Console()


def progress_to(quiet: bool) -> Progress:
    """Return where progress goes: to stderr; nowhere if it is to be quiet, unless that is a terminal.

    Of several ranks only the first one says anything.
    """
    from rich.console import Console

    from surgeon.progress import Progress

    console = Console(stderr=True)
    return Progress(None if group.started()[0] > 0 or (quiet and not console.is_terminal) else console)


def quiet_libraries(verbose: bool) -> None:
    """Quiet the libraries below, whose warnings are not meant for our users; none is imported for it."""
    import warnings

    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        warnings.simplefilter("ignore")
