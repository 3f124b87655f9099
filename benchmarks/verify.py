"""What measuring perplexity costs beside a plain forward pass in transformers, and beside lm-evaluation-harness.

    python benchmarks/verify.py [--model builtin:tiny30] [--languages ar,en,zh] [--tokens 512] [--window 256]
                                [--rounds 3] [--harness PYTHON]

In turn, each in a fresh process of one thread, in float32, importing and loading included:

    plain     transformers: the same windows in the same batches, cross entropy of the logits
    surgeon   `measure` of the base alone
    three     the same of the base and three variants that zero 1 % of the entries in all layers: four models
    harness   lm-evaluation-harness's model on the same windows, by what its `loglikelihood_rolling` calls for windows

`harness` runs by the interpreter of an environment that has lm_eval (`make bench` makes one). The negative
log-likelihoods of all are compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from costs import in_turn, one_thread, spread, table, where

RECIPE = """
version: 1
name: verify
model: {model}
corpus: builtin:udhr30
regions:
  a: {{select: {{random: 0.01, seed: 1}}, exclude: [norm]}}
  b: {{select: {{random: 0.01, seed: 2}}, exclude: [norm]}}
  c: {{select: {{random: 0.01, seed: 3}}, exclude: [norm]}}
variants:
  a: {{operations: [{{zero: a}}], write: false}}
  b: {{operations: [{{zero: b}}], write: false}}
  c: {{operations: [{{zero: c}}], write: false}}
verify: {{languages: [{languages}], tokens: {tokens}, window: {window}}}
output: {folder}/out
"""


def texts_of(plan: Any) -> dict[str, Any]:
    """Return the windows that are measured, by language."""
    from surgeon.measure.perplexity import evaluation_texts
    from surgeon.model.tokenizer import load_tokenizer

    return evaluation_texts(load_tokenizer(plan.checkpoint), plan.corpus, plan.verify_languages, plan.recipe.verify)


def plain(plan: Any, texts: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """Measure by transformers alone; also returns the processor seconds of the passes alone."""
    import torch
    import transformers
    from variants import whole

    model = transformers.AutoModelForCausalLM.from_pretrained(plan.checkpoint.folder, dtype=torch.float32).eval()
    started = time.process_time()
    found = whole(model, texts, plan.recipe.verify.batch_size)
    return time.process_time() - started, found


def ours(plan: Any, texts: dict[str, Any], variants: bool) -> tuple[float, dict[str, float]]:
    """Measure the base, with the variants if wanted; also returns the processor seconds of the passes alone."""
    from variants import losses

    from surgeon.model.editing import Variant
    from surgeon.model.workplace import Workplace
    from surgeon.regions.make import make_regions

    models = [Variant("base")]
    if variants:
        regions = make_regions(plan.provenance(1), [], plan.recipe.regions, {})
        models += [Variant(name, item.operations, regions) for name, item in plan.recipe.variants.items()]
    stack = Workplace("cpu", 1).load(plan.checkpoint, "float32")
    started = time.process_time()
    found = losses(stack, models, texts, plan.recipe.verify.batch_size)
    return time.process_time() - started, found["base"]


HARNESS = """
import json, sys, time
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
asked = json.load(open(sys.argv[1]))
sizes = {"batch_size": asked["batch"], "max_length": asked["window"]}
model = HFLM(pretrained=asked["model"], dtype="float32", device="cpu", **sizes)
started = time.process_time()
found = {}
for language, windows in asked["windows"].items():
    # A window is (context, what is predicted after it), as the harness itself makes them of a text.
    requests = [(None, context, continuation) for context, continuation in windows]
    nlls = model._loglikelihood_tokens(requests, disable_tqdm=True)
    found[language] = -sum(nll for nll, _ in nlls)
print(json.dumps({"work": time.process_time() - started, "nll": found}))
"""


def windows_for_harness(texts: dict[str, Any]) -> dict[str, list[tuple[list[int], list[int]]]]:
    """Return each window as the harness asks for it: what is given, and what is predicted after it.

    Its model input is all tokens but the last, as here.
    """
    result = {}
    for language, text in texts.items():
        result[language] = [(list(w.inputs[: len(w.inputs) - len(w.labels) + 1]), list(w.labels)) for w in text.windows]
    return result


def run(arguments: argparse.Namespace) -> None:
    """Do one of them in this process."""
    import surgeon

    plan = surgeon.plan_recipe(arguments.recipe)
    texts = texts_of(plan)
    if arguments.run == "ask":
        asked = {"model": str(plan.checkpoint.folder), "batch": plan.recipe.verify.batch_size}
        asked |= {"window": plan.recipe.verify.window + 1, "windows": windows_for_harness(texts)}
        print(json.dumps(asked))
        return
    work, found = plain(plan, texts) if arguments.run == "plain" else ours(plan, texts, arguments.run == "three")
    tokens = sum(len(w.labels) for text in texts.values() for w in text.windows)
    print(json.dumps({"work": work, "tokens": tokens, "nll": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="builtin:tiny30")
    add("--languages", default="ar,en,zh")
    add("--tokens", type=int, default=512)
    add("--window", type=int, default=256)
    add("--rounds", type=int, default=3)
    add("--harness", help="interpreter of an environment with lm_eval")
    add("--run", choices=("plain", "surgeon", "three", "ask"), help=argparse.SUPPRESS)
    add("--recipe", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run is not None:
        run(arguments)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        compare(arguments, folder)


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Run all of them in turn and print what they took and found."""
    recipe = folder / "recipe.yaml"
    model = arguments.model if arguments.model.startswith("builtin:") else Path(arguments.model).resolve()
    recipe.write_text(
        RECIPE.format(
            model=model, languages=arguments.languages, tokens=arguments.tokens, window=arguments.window, folder=folder
        ), encoding="utf-8",
    )  # fmt: skip
    command = [sys.executable, __file__, "--recipe", str(recipe), "--run"]
    commands = {name: [*command, name] for name in ("plain", "surgeon", "three")}
    environment = {**one_thread(), "SURGEON_CACHE": str(folder / "cache")}
    if arguments.harness is not None:
        asked = in_turn({"ask": [*command, "ask"]}, 1, environment)["ask"][0].said
        (folder / "asked.json").write_text(asked, encoding="utf-8")
        commands["harness"] = [arguments.harness, "-c", HARNESS, str(folder / "asked.json")]
    found = in_turn(commands, arguments.rounds, environment)
    print(where("torch", "transformers"))
    print(f"{arguments.model}, {arguments.languages}, {arguments.tokens} tokens each, one thread, float32")
    print(table(found, "plain"))
    said = {name: [json.loads(cost.said.splitlines()[-1]) for cost in costs] for name, costs in found.items()}
    reference, tokens = said["plain"][0]["nll"], said["plain"][0]["tokens"]
    for name, items in said.items():
        ratios = [mine["work"] / other["work"] for mine, other in zip(items, said["plain"], strict=True)]
        speeds = [tokens / item["work"] for item in items]
        apart = max(abs(nll / reference[language] - 1) for language, nll in items[0]["nll"].items())
        print(
            f"{name:12} passes alone {spread(ratios)}, tokens a processor second {spread(speeds)}, "
            f"NLL within {apart:.1e} of the plain one"
        )


if __name__ == "__main__":
    main()
