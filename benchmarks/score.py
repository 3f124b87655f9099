"""What scoring costs beside a plain forward and backward pass of the same batches in transformers.

    python benchmarks/score.py [--model builtin:tiny30] [--languages ar] [--samples 8] [--length 256] [--rounds 3]

In turn, each in a fresh process of one thread, both in float32, importing and loading included:

    plain     transformers: the whole model, loss.backward() for each batch, then |weight x gradient|
    surgeon   `surgeon score`'s sweep through the layers, up to the scores of every tensor
    selected  the same, and the top 1 % selected of every tensor

`work` is the processor time of the passes alone. The largest difference of a score, relative to the tensor's largest,
is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from costs import in_turn, one_thread, spread, table, where
from numpy.typing import NDArray

RECIPE = """
version: 1
name: score
model: {model}
corpus: builtin:udhr30
regions:
  core:
    score: {{kind: grad_param, languages: [{languages}], samples: {samples}, sequence_length: {length}}}
    select: {{top: 0.01}}
    exclude: [norm]
output: {folder}/out
"""
Arrays = dict[str, NDArray[np.float32]]


def sequences(plan: Any) -> dict[str, list[tuple[int, ...]]]:
    """Return the token ids that surgeon scores on."""
    from surgeon import scoring
    from surgeon.model.tokenizer import load_tokenizer

    spec = plan.scores()[0]
    return scoring._sequences(plan, spec, spec.languages, load_tokenizer(plan.checkpoint))[0]


def plain(plan: Any, texts: dict[str, list[tuple[int, ...]]]) -> tuple[float, dict[str, Arrays]]:
    """Score by transformers alone; also returns the processor seconds of the passes alone."""
    import torch
    import transformers

    names = {info.name for info in plan.scored_tensors(plan.scores()[0])}
    model = transformers.AutoModelForCausalLM.from_pretrained(plan.checkpoint.folder, dtype=torch.float32).eval()
    batch_size = plan.scores()[0].batch_size
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    found: dict[str, Arrays] = {}
    started = time.process_time()
    for language, rows in texts.items():
        predicted = sum(len(row) - 1 for row in rows)
        for start in range(0, len(rows), batch_size):
            ids = torch.tensor(rows[start : start + batch_size])
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
            (loss / predicted).backward()
        found[language] = {}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[language][name] = parameter.grad.mul_(parameter.detach()).abs_().numpy()
                parameter.grad = None
    return time.process_time() - started, found


def ours(plan: Any, texts: dict[str, list[tuple[int, ...]]], select: bool) -> tuple[float, dict[str, Arrays]]:
    """Score, and select if wanted, by surgeon; also returns the processor seconds of the passes alone."""
    from surgeon.model.workplace import Workplace
    from surgeon.plan.needs import Running
    from surgeon.progress import Progress
    from surgeon.scores.score_pass import ScorePass
    from surgeon.scoring import cut_of, select_in_pass

    score = plan.sampled_scores()[0]
    stack = Workplace("cpu", 1).load(plan.checkpoint, "float32")
    in_one_go = Running(plan).scores_in_one_go(score)
    sweep = ScorePass(stack, texts, plan.scored_tensors(score), score, Progress(), in_one_go=in_one_go)
    started = time.process_time()
    if select:
        select_in_pass(sweep, cut_of(plan.checkpoint, plan.regions, list(texts)), "benchmark")
        return time.process_time() - started, {}
    found: dict[str, Arrays] = {language: {} for language in texts}
    with sweep.scratch("benchmark") as scratch:
        for _, language, scores in sweep.run(scratch, sweep.start(scratch)):
            found[language] |= scores
    return time.process_time() - started, found


def run(arguments: argparse.Namespace) -> None:
    """Do one of the three in this process."""
    import surgeon

    plan = surgeon.plan_recipe(arguments.recipe)
    texts = sequences(plan)
    work, found = plain(plan, texts) if arguments.run == "plain" else ours(plan, texts, arguments.run == "selected")
    print(json.dumps({"work": work, "tokens": sum(len(row) for rows in texts.values() for row in rows)}))
    if arguments.save is not None:
        named = {f"{code}/{name}": array for code, row in found.items() for name, array in row.items()}
        np.savez(arguments.save, **named)


def furthest(left: Path, right: Path) -> float:
    with np.load(left) as a, np.load(right) as b:
        assert sorted(a.files) == sorted(b.files)
        return max(float(np.abs(a[name] - b[name]).max() / a[name].max()) for name in a.files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="builtin:tiny30")
    add("--languages", default="ar")
    add("--samples", type=int, default=8)
    add("--length", type=int, default=256)
    add("--rounds", type=int, default=3)
    add("--run", choices=("plain", "surgeon", "selected"), help=argparse.SUPPRESS)
    add("--recipe", type=Path, help=argparse.SUPPRESS)
    add("--save", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run is not None:
        run(arguments)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = folder / "recipe.yaml"
        model = arguments.model if arguments.model.startswith("builtin:") else Path(arguments.model).resolve()
        recipe.write_text(
            RECIPE.format(
                model=model, languages=arguments.languages, samples=arguments.samples, length=arguments.length,
                folder=folder,
            ), encoding="utf-8",
        )  # fmt: skip
        commands = {
            name: [sys.executable, __file__, "--run", name, "--recipe", str(recipe)]
            for name in ("plain", "surgeon", "selected")
        }
        environment = {**one_thread(), "SURGEON_CACHE": str(folder / "cache")}
        found = in_turn(commands, arguments.rounds, environment)
        print(f"{where('torch', 'transformers')}\n{arguments.model}, {arguments.languages}, one thread, float32")
        print(table(found, "plain"))
        said = {name: [json.loads(cost.said) for cost in costs] for name, costs in found.items()}
        for name, items in said.items():
            ratios = [mine["work"] / other["work"] for mine, other in zip(items, said["plain"], strict=True)]
            speeds = [item["tokens"] / item["work"] for item in items]
            print(f"{name:12} passes alone {spread(ratios)}, tokens a processor second {spread(speeds)}")
        for name in ("plain", "surgeon"):
            in_turn({name: [*commands[name], "--save", str(folder / f"{name}.npz")]}, 1, environment)
        print(f"scores differ by {furthest(folder / 'plain.npz', folder / 'surgeon.npz'):.1e} at most")


if __name__ == "__main__":
    main()
