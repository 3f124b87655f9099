"""Many variants measured in one sweep through the layers, against a whole-model pass for each of them in transformers.

    python benchmarks/variants.py [--model builtin:tiny30] [--variants 10] [--from-layer N] [--rounds 3] [--tokens 512]

Each variant zeroes 1 % of the matrices, drawn at random, in the upper half of the layers (or from layer N on). The peer
holds the model in float32, zeroes the same entries in place, computes the same windows' losses and puts the entries
back, a variant after the other. Both run in this process in turn, after one round that is not counted; figures are
processor seconds, the ratio is that of the medians. Losses are compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
import yaml

import surgeon
from surgeon.measure.measuring import Look, measure
from surgeon.measure.perplexity import EvaluationText, Perplexity, evaluation_texts, window_pieces
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import Stack, make_stack
from surgeon.model.model import load_model
from surgeon.operations import Zero
from surgeon.plan.plan import Plan
from surgeon.progress import Progress
from surgeon.region.region import Region
from surgeon.regions.make import make_regions


def planned(arguments: argparse.Namespace, folder: Path) -> Plan:
    layers = surgeon.Checkpoint.open(arguments.model).config["num_hidden_layers"]
    first = layers // 2 if arguments.from_layer is None else arguments.from_layer
    regions = {
        f"r{seed}": {
            "select": {"random": 0.01, "seed": seed}, "exclude": ["norm"], "layers": [first, layers - 1],
        }
        for seed in range(arguments.variants)
    }  # fmt: skip
    recipe = {
        "version": 1, "name": "variants", "model": arguments.model, "corpus": "builtin:udhr30", "regions": regions,
        "output": str(folder / "out"),
        "variants": {f"v{name}": {"operations": [{"zero": name}], "write": False} for name in regions},
        "verify": {"languages": arguments.languages.split(","), "tokens": arguments.tokens, "window": arguments.window},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return surgeon.plan_recipe(path)


def losses(
    stack: Stack, variants: list[Variant], texts: dict[str, EvaluationText], batch: int
) -> dict[str, dict[str, float]]:
    """Ours: each variant's sum of losses on each language, all in one pass."""
    look = Look(Perplexity(), window_pieces(texts, batch), frozenset(variant.name for variant in variants))
    found = measure(stack, variants, [look], Progress())
    return {
        name: {code: sum(sums["perplexity"].totals) for code, sums in of["perplexity"].groups.items()}
        for name, of in found.items()
    }


@torch.no_grad()
def whole(model: torch.nn.Module, texts: dict[str, EvaluationText], batch: int) -> dict[str, float]:
    """The plain way: the windows of each language, `batch` at a time, through the whole model."""
    result = {}
    for language, text in texts.items():
        total = 0.0
        for start in range(0, len(text.windows), batch):
            windows = text.windows[start : start + batch]
            width = max(len(window.inputs) for window in windows)
            ids = torch.tensor([[*window.inputs, *[0] * (width - len(window.inputs))] for window in windows])
            logits = model(input_ids=ids, use_cache=False).logits.float()
            for row, window in enumerate(windows):
                stop, labels = len(window.inputs), torch.tensor(window.labels)
                total += torch.nn.functional.cross_entropy(
                    logits[row, stop - len(labels) : stop], labels, reduction="sum"
                ).item()
        result[language] = total
    return result


@torch.no_grad()
def one_by_one(
    model: torch.nn.Module, regions: dict[str, Region], texts: dict[str, EvaluationText], batch: int
) -> dict[str, dict[str, float]]:
    parameters = dict(model.named_parameters())
    result = {"base": whole(model, texts, batch)}
    for name, region in regions.items():
        masks = {tensor: torch.from_numpy(region.mask(tensor)) for tensor in region}
        kept = {tensor: parameters[tensor][mask].clone() for tensor, mask in masks.items()}
        for tensor, mask in masks.items():
            parameters[tensor][mask] = 0
        result[f"v{name}"] = whole(model, texts, batch)
        for tensor, mask in masks.items():
            parameters[tensor][mask] = kept[tensor]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="builtin:tiny30")
    add("--variants", type=int, default=10)
    add("--from-layer", type=int)
    add("--rounds", type=int, default=3)
    add("--tokens", type=int, default=512)
    add("--window", type=int, default=256)
    add("--languages", default="ar,en,zh")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        plan = planned(arguments, Path(temporary))
        regions = make_regions(plan.provenance(1), [], plan.recipe.regions, {})
        spec = plan.recipe.verify
        assert spec is not None
        stack = make_stack(load_model(plan.checkpoint, "float32", "cpu"))
        texts = evaluation_texts(stack.loaded.tokenizer, plan.corpus, plan.verify_languages, spec)
        model = transformers.AutoModelForCausalLM.from_pretrained(plan.checkpoint.folder, dtype=torch.float32).eval()
        variants = [Variant("base"), *(Variant(f"v{name}", [Zero(zero=name)], regions) for name in regions)]
        seconds: dict[str, list[float]] = {"together": [], "one by one": []}
        for _ in range(arguments.rounds + 1):
            started = time.process_time()
            together = losses(stack, variants, texts, spec.batch_size)
            seconds["together"].append(time.process_time() - started)
            started = time.process_time()
            plain = one_by_one(model, regions, texts, spec.batch_size)
            seconds["one by one"].append(time.process_time() - started)
        furthest = max(
            abs(together[name][code] / value - 1) for name, row in plain.items() for code, value in row.items()
        )
        medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
        print(f"{arguments.model}, {arguments.variants} variants and the base, load {os.getloadavg()[0]:.1f}")
        for name, value in medians.items():
            print(f"{name:10}  {value:7.2f} s of processor time")
        print(f"ratio {medians['together'] / medians['one by one']:.2f}; losses differ by {furthest:.1e} at most")


if __name__ == "__main__":
    main()
