"""Single findings of measurements, one a line, for those who want to look at them: `samples/KIND/VARIANT.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from surgeon import inside
from surgeon.checkpoint.hashing import file_hash
from surgeon.inside import replacing
from surgeon.model.results import Figures
from surgeon.write.integrity import SAMPLES


def write_samples(output: Path, found: Mapping[str, Mapping[str, Figures]]) -> dict[Path, str]:
    """Write what figures, by variant and kind, have of them; returns the files with their SHA-256."""
    files = {}
    for variant, by_kind in found.items():
        for kind, figures in by_kind.items():
            if not figures.samples:
                continue
            path = output / SAMPLES / kind / f"{variant}.jsonl"
            with replacing(path) as part, inside.create(part) as file:
                for sample in figures.samples:
                    file.write((json.dumps(sample, ensure_ascii=False) + "\n").encode())
            files[path] = file_hash(path)
    return files
