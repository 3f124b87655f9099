"""More measurements of seven models in one pass, against perplexity alone of as many tokens.

    python benchmarks/measurements.py [--model builtin:tiny30] [--variants 6] [--items 8] [--questions 16] [--rounds 3]

Four sides: perplexity alone; with divergence; with choice, too; and with two tasks of lm-evaluation-harness out of a
folder (`surgeon choice`), where the harness is installed. Each variant zeroes 1 % of the matrices at random, from the
first layer on. All sides run in this process in turn, after one round that is not counted. Figures are processor
seconds for each token that goes through the layers, those of several measurements counted once; a ratio is that of the
medians. Perplexity alone is measured in windows of 256 tokens, on about as many tokens as the last side runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

import surgeon
from surgeon.measure.base import Pieces, Subject
from surgeon.measure.choice import write_choice_tasks
from surgeon.measure.measuring import Look, measure
from surgeon.measure.perplexity import evaluation_texts, window_pieces
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import make_stack
from surgeon.model.model import load_model
from surgeon.operations import Zero
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.regions.make import make_regions
from surgeon.text.corpora import builtin_corpus


def tokens_of(looked_at: Sequence[Pieces]) -> int:
    """Tokens that go through the layers; batches that several look at count once."""
    inputs = {id(batch.inputs): batch.inputs for pieces in looked_at for batch in pieces.batches}
    return sum(batch.numel() for batch in inputs.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="builtin:tiny30")
    add("--variants", type=int, default=6)
    add("--items", type=int, default=8)
    add("--questions", type=int, default=16, help="of each task")
    add("--rounds", type=int, default=3)
    add("--languages", default="ar,en,zh")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    languages, corpus = arguments.languages.split(","), builtin_corpus("udhr30")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "recipe.yaml"
        names = [f"r{seed}" for seed in range(arguments.variants)]
        regions = {
            name: {"select": {"random": 0.01, "seed": seed}, "exclude": ["norm"]} for seed, name in enumerate(names)
        }
        recipe = {
            "version": 1, "name": "m", "model": arguments.model, "corpus": "builtin:udhr30", "regions": regions,
            "output": str(Path(temporary) / "out"),
            "variants": {f"v{name}": {"operations": [{"zero": name}], "write": False} for name in names},
        }  # fmt: skip
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        plan = surgeon.plan_recipe(path)
        made = make_regions(plan.provenance(1), [], plan.recipe.regions, {})
        stack = make_stack(load_model(plan.checkpoint, "float32", "cpu"))
        variants = [Variant("base"), *(Variant(f"v{name}", [Zero(zero=name)], made) for name in names)]
        models = frozenset(variant.name for variant in variants)

        def looks(spec: VerifySpec) -> list[Look]:
            loaded = stack.loaded
            windows = window_pieces(evaluation_texts(loaded.tokenizer, corpus, languages, spec), spec.batch_size)
            subject = Subject(
                loaded.tokenizer, loaded.model.config, corpus, languages, spec.window, spec.batch_size, windows
            )
            return [
                Look(item, item.pieces(subject), models - {"base"} if item.compares else models)
                for item in spec.measurements
            ]

        keys: dict[str, dict[str, Any]] = {
            "with divergence": {"divergence": True},
            "and choice": {"divergence": True, "choice": {"items": arguments.items}},
        }
        if find_spec("lm_eval") is not None:
            folder = Path(temporary) / "tasks"
            write_choice_tasks(folder, corpus, list(dict.fromkeys([*languages, "en", "zh"]))[:2], arguments.questions)
            keys["and two tasks"] = {**keys["and choice"], "tasks": {"names": [f"{folder}/"]}}
        sides = {name: looks(VerifySpec.model_validate({"tokens": 512, **item})) for name, item in keys.items()}
        most = max(tokens_of([look.pieces for look in side]) for side in sides.values())
        only = {"divergence": False, "tokens": max(most // len(languages), 2)}
        sides = {"perplexity alone": looks(VerifySpec.model_validate(only)), **sides}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(arguments.rounds + 1):
            for name, chosen in sides.items():
                started = time.process_time()
                measure(stack, variants, chosen, Progress())
                seconds[name].append(time.process_time() - started)
    counts = {name: tokens_of([look.pieces for look in side]) for name, side in sides.items()}
    each = {name: statistics.median(values[1:]) / counts[name] for name, values in seconds.items()}
    print(f"{arguments.model}, {len(variants)} models, load {os.getloadavg()[0]:.1f}")
    for name, value in each.items():
        ratio = value / each["perplexity alone"]
        print(f"{name:17} {counts[name]:7,} tokens  {1e3 * value:8.3f} ms of processor time a token  {ratio:.2f}")


if __name__ == "__main__":
    main()
