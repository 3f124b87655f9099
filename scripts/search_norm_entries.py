"""Search a model's norm vectors for single entries on which the model depends (the third claim of docs/paper.md).

Every norm vector of the decoder layers, at each of the residual dimensions that hold most of a region: that one
entry is multiplied, the perplexity of a few languages measured on few tokens, and the entry put back.

    python scripts/search_norm_entries.py paper/claim3 --region core --dimensions 8
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from surgeon.api import plan_recipe, score
from surgeon.checkpoint.naming import natural_key, place
from surgeon.measure.verification import verify
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import make_stack
from surgeon.model.model import load_model
from surgeon.model.results import Measure
from surgeon.operations import Scale
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.region.dimensions import profile
from surgeon.region.region import Region


def ratios(found: dict[str, Measure], base: dict[str, Measure]) -> dict[str, float]:
    """Return each language's perplexity as a multiple of the base's."""
    return {name: math.exp(min(found[name].log_perplexity - base[name].log_perplexity, 700.0)) for name in base}


def main() -> None:
    """Print the entries that do most damage, and how many languages each takes beyond tenfold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe whose region the dimensions are taken from")
    parser.add_argument("--region", default="core", help="the region (default: core)")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a recipe field")
    parser.add_argument("--output", default=None, help="where the recipe's regions are written")
    parser.add_argument("--dimensions", type=int, default=8, help="residual dimensions to try (default: 8)")
    parser.add_argument("--by", type=float, default=4.0, help="the factor (default: 4)")
    parser.add_argument("--languages", nargs="+", default=["en", "zh", "ar", "es"])
    parser.add_argument("--tokens", type=int, default=64, help="per language (default: 64)")
    parser.add_argument("--show", type=int, default=15, help="entries to print (default: 15)")
    arguments = parser.parse_args()

    plan = plan_recipe(arguments.recipe, output=arguments.output, overrides=arguments.set)
    files = score(arguments.recipe, output=arguments.output, overrides=arguments.set)
    checkpoint = plan.checkpoint
    dimensions = profile(Region.load(files[arguments.region]), checkpoint.config).dimensions[: arguments.dimensions]
    print("dimension (entries of the region on it):", ", ".join(f"{d.index} ({d.hits:,})" for d in dimensions))

    stack = make_stack(load_model(checkpoint, "float32"))
    spec = VerifySpec(languages=arguments.languages, tokens=arguments.tokens)
    places: list[tuple[str, int]] = []
    variants = [Variant("base")]
    for name in sorted(checkpoint.tensors, key=natural_key):
        info = checkpoint.tensors[name]
        if place(info, checkpoint.config).role != "norm":
            continue
        for dimension in (d.index for d in dimensions if d.index < info.numel):
            entry = Region.from_indices({name: np.array([dimension])}, {name: info.shape})
            places.append((name, dimension))
            variants.append(Variant(str(len(places)), [Scale(scale="entry", by=arguments.by)], {"entry": entry}))
    base, *found = verify(stack, variants, plan.corpus, arguments.languages, spec, Progress()).measures.values()
    tried = [(*where, ratios(one, base)) for where, one in zip(places, found, strict=True)]
    tried.sort(key=lambda item: -math.prod(item[2].values()))
    print(f"{len(tried)} entries tried, times {arguments.by:g}, {arguments.tokens} tokens a language; worst first:")
    for name, dimension, by_language in tried[: arguments.show]:
        beyond = sum(ratio > 10 for ratio in by_language.values())
        shown = "  ".join(f"{language} x{ratio:.4g}" for language, ratio in by_language.items())
        print(f"{name}[{dimension}]  {shown}  ({beyond} of {len(by_language)} beyond tenfold)")


if __name__ == "__main__":
    main()
