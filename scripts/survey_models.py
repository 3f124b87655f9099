"""Runs surgeon on a tiny random model of every family that transformers has, and compares with plain transformers.

    python scripts/survey_models.py --results results.jsonl            every family
    python scripts/survey_models.py --results results.jsonl llama ...  some of them
    python scripts/survey_models.py --results results.jsonl --page     docs/models.md of these results

A line of JSON per family is added to the results as it ends. Every family runs in a process of its own, forked from
one that has imported what is large.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", COLUMNS="10000", NO_COLOR="1"
)
WRONG = ("partial", "wrong", "traceback", "not judged")
sys.path.insert(0, str(Path(__file__).parent / "survey"))


def main() -> None:
    """Run the survey, or write its page; exits with 1 if a family is neither right nor refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="families; all if none are given")
    parser.add_argument("--results", type=Path, required=True, help="file that a line per family is added to")
    parser.add_argument("--jobs", type=int, default=2, help="families at a time")
    parser.add_argument("--seconds", type=float, default=180, help="time that a family may take")
    parser.add_argument("--again", help="run only families whose last verdict in the results is in this list, a,b,c")
    parser.add_argument("--page", action="store_true", help="write docs/models.md from the results, and run nothing")
    wanted = parser.parse_args()
    from page import read, write

    if wanted.page:
        print(f"wrote {write(wanted.results)}")
        return

    from families import families
    from layouts import LAYOUTS

    every = {name: case.class_name for name, case in families().items()} | {
        name: it.class_name for name, it in LAYOUTS.items()
    }
    names = wanted.names or list(every)
    wanted.results.parent.mkdir(parents=True, exist_ok=True)
    if wanted.again:
        last = {name: found.verdict for name, found in read(wanted.results).items()}
        names = [name for name in names if last.get(name, "none") in wanted.again.split(",")]
    _import_what_is_large()
    with tempfile.TemporaryDirectory(prefix="survey-") as work:
        _run(names, every, Path(work), wanted)
    counts = Counter(it.verdict for name, it in read(wanted.results).items() if name in names)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts)))
    sys.exit(any(verdict in counts for verdict in WRONG))


def _import_what_is_large() -> None:
    """Import, once for all families, what each would import; leave out the drawing of pictures, which takes longest."""
    import importlib
    import pkgutil

    import transformers
    import vl_convert
    from judge import NOT_DRAWN
    from tiny import byte_tokenizer, config_of

    import surgeon

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    for module in pkgutil.walk_packages(surgeon.__path__, "surgeon."):
        if not module.name.startswith(("surgeon.freeze", "surgeon.__main__")):
            importlib.import_module(module.name)
    transformers.LlamaForCausalLM(config_of("llama"))
    transformers.AutoModelForCausalLM  # noqa: B018
    byte_tokenizer()
    for drawing, instead in NOT_DRAWN.items():
        setattr(vl_convert, drawing, instead)
    gc.collect()
    gc.freeze()  # or every child's first collection would copy all that is shared


def _run(names: list[str], every: dict[str, str], work: Path, wanted: argparse.Namespace) -> None:
    waiting = list(names)
    running: dict[int, tuple[str, float, Path]] = {}
    while waiting or running:
        while waiting and len(running) < wanted.jobs:
            name = waiting.pop(0)
            folder = Path(tempfile.mkdtemp(dir=work))
            child = os.fork()
            if child == 0:
                _work(name, folder)
            running[child] = (name, time.monotonic(), folder)
        child, _ = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            for process, (_, begun, _) in running.items():
                if time.monotonic() - begun > wanted.seconds:
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)
            continue
        name, begun, folder = running.pop(child)
        _note(name, every[name], folder, time.monotonic() - begun, wanted.results)
        shutil.rmtree(folder, ignore_errors=True)


def _work(name: str, folder: Path) -> None:
    """Judge a family in this forked process, and end it."""
    from judge import as_line, one

    os.setpgid(0, 0)
    with open(folder / "stderr", "w") as quiet:
        os.dup2(quiet.fileno(), 2)
        os.dup2(quiet.fileno(), 1)
    try:
        line = as_line(one(name, folder))
        (folder / "result").write_text(line, encoding="utf-8")
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def _note(name: str, class_name: str, folder: Path, seconds: float, results: Path) -> None:
    from judge import Found, as_line

    if (folder / "result").is_file():
        found = Found(**json.loads((folder / "result").read_text("utf-8")))
    else:
        last = (
            (folder / "stderr").read_text("utf-8", "replace").strip().splitlines()[-3:]
            if (folder / "stderr").exists()
            else []
        )
        found = Found(name, class_name, "not judged", message=" | ".join(last) or "took too long")
    found.seconds = round(seconds, 1)
    with results.open("a", encoding="utf-8") as file:
        file.write(as_line(found) + "\n")
    print(f"{found.verdict:10s} {name}: {found.message or '; '.join(found.wrong)}"[:400], flush=True)


if __name__ == "__main__":
    main()
