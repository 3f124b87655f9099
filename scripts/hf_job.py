# /// script
# requires-python = ">=3.10"
# dependencies = []
#
# [tool.hf-jobs]
# flavor = "a10g-small"
# timeout = "2h"
# secrets = ["HF_TOKEN"]
# ///
"""Cut the core out of a model on a rented machine, and push the variant with its report.

    hf jobs uv run --with git+ADDRESS scripts/hf_job.py org/model --repo you/model-without-core

ADDRESS is that of surgeon's repository. The machine is gone afterwards, so that all that stays is what is pushed: the
variant as a private repository, with the run's report.html and report.json beside its card.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from rich.console import Console

from surgeon.api import cut_model
from surgeon.hub.push import check_repo_id
from surgeon.plan.first_cut import LANGUAGES, FirstCut
from surgeon.progress import Progress


def main(arguments: Sequence[str] | None = None) -> None:
    """Cut, push, and put the report beside what was pushed."""
    parser = argparse.ArgumentParser(description="Cut the core out of a model, and push it with its report.")
    parser.add_argument("model", help="a Hub id")
    parser.add_argument("--repo", required=True, help="where to push to: org/name")
    parser.add_argument("--top", type=float, default=0.01, help="share of each matrix to cut")
    parser.add_argument("--languages", default=",".join(LANGUAGES), help="codes of the languages to score on")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a field of the recipe"
    )
    given = parser.parse_args(arguments)
    check_repo_id(given.repo)
    overrides = [f"push={{repo: {given.repo}, private: true}}", *given.set]
    wanted = FirstCut(given.model, given.top, given.languages.split(","), Path("out"))
    report = cut_model(wanted, overrides=overrides, progress=Progress(Console(stderr=True)))
    files = [CommitOperationAdd(name, Path("out") / name) for name in ("report.html", "report.json")]
    HfApi().create_commit(given.repo, files, commit_message="Report of the run")
    print(report.pushed["core-zeroed"].url)


if __name__ == "__main__":
    main()
