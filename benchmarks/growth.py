"""How costs grow with the model: writing a variant at three sizes on disk, the whole of `apply` at three models' sizes.

    python benchmarks/growth.py WORK [--gigabytes 0.3 2 13] [--models 8x1024 17x2304 32x3072] [--figure FILE.svg]

Writing is `surgeon apply` of a random 1 % of the matrices without verification, on the checkpoints of write.py, once to
fill the caches and once measured. The other is the recipe of layers.py (scores in two languages, controls, the base and
three variants measured, one written) on its models, LAYERSxHIDDEN, of some 10^8, 10^9 and 3 x 10^9 parameters. Each
runs in a process of its own with one thread. Prints wall and processor seconds, processor seconds for each gigabyte
or 10^9 parameters, and the highest anonymous memory beside the plan's; draws the seconds for each as one figure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import layers
import write
from costs import Cost, cost, one_thread, where

from surgeon.api import plan_recipe
from surgeon.report.drawing import Figure, svg, themed

Row = dict[str, Any]


def writing(work: Path, gigabytes: float) -> Row:
    """Measure the writing of one variant of a checkpoint of some size."""
    folder = work / f"write-{gigabytes:g}"
    source, target, region = folder / "source", folder / "target", folder / "r.safetensors"
    write.make_checkpoint(source, gigabytes)
    write.make_region(source, region, 0.01)
    recipe = write.RECIPE.format(
        source=source, region=region, variants="v: {operations: [{zero: r}]}", output=target
    )  # fmt: skip
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    size = sum(path.stat().st_size for path in source.iterdir()) / 1e9
    for _ in range(2):
        shutil.rmtree(target, ignore_errors=True)
        os.sync()
        found = cost(
            [sys.executable, "-m", "surgeon", "apply", str(folder / "recipe.yaml"), "--jobs", "1"], one_thread()
        )
    shutil.rmtree(folder)
    return told("writing a variant, by gigabyte", size, found, None)


def whole(work: Path, model: str) -> Row:
    """Measure all of `apply` on a model of some layers and width."""
    count, hidden = map(int, model.split("x"))
    folder = work / f"model-{count}-{hidden}"
    if not (folder / "model.safetensors.index.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        layers.make_checkpoint(folder, count, hidden)
    recipe, output, cache = work / "recipe.yaml", work / "out", work / "cache"
    recipe.write_text(layers.RECIPE.format(model=folder, output=output, samples=1), encoding="utf-8")
    for left in (output, cache):
        shutil.rmtree(left, ignore_errors=True)
    plan = plan_recipe(recipe)
    parameters = sum(info.numel for info in plan.checkpoint.tensors.values()) / 1e9
    environment = {**one_thread(), "SURGEON_CACHE": str(cache)}
    found = cost([sys.executable, "-m", "surgeon", "apply", str(recipe)], environment)
    for left in (output, cache):
        shutil.rmtree(left)
    return told("all of apply, by billion parameters", parameters, found, plan.peak_memory)


def told(what: str, size: float, found: Cost, planned: int | None) -> Row:
    row = {
        "what": what, "size": round(size, 3), "wall": round(found.wall, 1), "processor": round(found.processor, 1),
        "per": round(found.processor / size, 2), "peak": found.peak, "planned": planned,
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def drawn(rows: list[Row]) -> str:
    """Draw processor seconds per unit of size over size."""
    panels = []
    for what in dict.fromkeys(row["what"] for row in rows):
        size = {"field": "size", "type": "quantitative", "title": what.partition("by ")[2], "scale": {"type": "log"}}
        values = [row for row in rows if row["what"] == what]
        top = {"domain": [0, 1.25 * max(row["per"] for row in values)]}
        per = {"field": "per", "type": "quantitative", "title": "processor seconds for each", "scale": top}
        mark = {"type": "line", "point": {"size": 60}, "color": "#3b6fb6"}
        panels.append({
            "width": 260, "height": 180, "title": what.partition(",")[0], "data": {"values": values}, "mark": mark,
            "encoding": {"x": size, "y": per},
        })  # fmt: skip
    figure = Figure("growth", "What a gigabyte, and what a billion parameters cost", "", {"hconcat": panels})
    return themed(svg(figure), dark=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="How costs grow with the model.")
    parser.add_argument("work", type=Path)
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[0.3, 2.0, 13.0])
    parser.add_argument("--models", nargs="*", default=["8x1024", "17x2304", "32x3072"])
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(where("torch", "transformers", "numpy"))
    rows = [writing(options.work, gigabytes) for gigabytes in options.gigabytes]
    rows += [whole(options.work, model) for model in options.models]
    if options.figure is not None:
        options.figure.write_text(drawn(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
