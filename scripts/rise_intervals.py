"""Say how sure the rises of docs/paper.md are: a 95 % interval of each, drawn over sentences as that of every ratio is.

    surgeon apply paper/claim4
    python scripts/rise_intervals.py out/claim4

A rise is how much a cut raises the log-perplexity of the language that it is named after, over the median rise of the
others. In each resample both are taken anew. The sums of the sentences come from the cache, where the run left them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from surgeon.checkpoint.store import cache_folder, recall
from surgeon.measure.uncertainty import LEVEL, resampled_changes
from surgeon.model.results import Sums

if __name__ == "__main__":
    found = json.loads((Path(sys.argv[1]) / "report.json").read_text(encoding="utf-8"))["perplexity"]
    kept = [(recall(path) or {}).get("found") for path in (cache_folder() / "measures").glob("*.json")]
    pieces = {
        variant: {language: Sums(*zip(*item["pieces"], strict=True)) for language, item in sums.items()}
        for variant, by_language in found.items()
        for sums in kept  # of every measurement; those of perplexities are by language
        if isinstance(sums, dict)
        and sums.keys() == by_language.keys()
        and all(sums[code]["nll"] == by_language[code]["nll"] for code in sums)
    }
    for variant, by_language in pieces.items():
        own = variant.partition("-")[0]
        if own in by_language:
            logs = {code: resampled_changes(pieces["base"][code], one, code) for code, one in by_language.items()}
            others = np.median([log for code, log in logs.items() if code != own], axis=0)
            low, high = np.quantile(logs[own] / others, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            print(f"{variant}: rise {low:.1f} to {high:.1f}")
