"""Claim 5: does freezing the core slow forgetting? Train the builtin model on in one language, and follow all thirty.

    surgeon apply recipes/paper/claim5_freeze.yaml
    python examples/further_pretraining.py out/claim5

Arms: nothing frozen, and each variant of the first command with its bundle frozen. Every arm of a seed sees the
same batches. The unfrozen arm is measured also with each bundle's entries put back to the base's values
(reversion). Text: the scoring half of the Declaration to train on, the evaluation half to measure on; with
`--corpus FOLDER` (files `LANG.txt` or `LANG.txt.xz`, one paragraph a line; their first 4,000 characters are kept
for measuring) it trains on that text and measures on both. OUTPUT/texts/LANG.txt are then texts for a recipe's
`corpus`: of their two halves the one that recipes measure on is what was kept.

Every measurement is appended to OUTPUT/curves.jsonl at once, and a run that is complete there is not repeated.
`further_pretraining_figure.py` draws it.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.freeze import Bundle, Frozen, freeze
from surgeon.measure.measuring import measure_loaded
from surgeon.measure.perplexity import EvaluationText
from surgeon.model.layer_stack import Stack, make_stack
from surgeon.model.model import load_model
from surgeon.model.tokenizer import load_tokenizer
from surgeon.text.corpora import builtin_corpus
from surgeon.text.windows import beginning, evaluation_windows, tokenize

HELD_OUT_CHARACTERS = 4_000
SEQUENCE = 256
Halves = dict[str, tuple[str, str]]  # language -> text to measure on, text to train on
Texts = dict[str, dict[str, EvaluationText]]  # register -> language -> windows


def read_paragraphs(path: Path) -> list[str]:
    data = path.read_bytes()
    text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8")
    return [line for line in text.splitlines() if line.strip()]


def split(paragraphs: list[str]) -> tuple[str, str]:
    """Return the text to measure on, about the first 4,000 characters, and the rest to train on."""
    total = count = 0
    while count < len(paragraphs) and total < HELD_OUT_CHARACTERS:
        total += len(paragraphs[count])
        count += 1
    return "\n".join(paragraphs[:count]) + "\n", "\n".join(paragraphs[count:]) + "\n"


def read_corpus(folder: Path, texts: Path) -> Halves:
    """Split every text of a folder; what is measured on is left as each second paragraph, which recipes measure on."""
    halves = {path.name.split(".")[0]: split(read_paragraphs(path)) for path in sorted(folder.glob("*.txt*"))}
    texts.mkdir(parents=True, exist_ok=True)
    for code, (held_out, training) in halves.items():
        pairs = zip(training.splitlines(), held_out.splitlines(), strict=False)
        lines = [line for pair in pairs for line in pair]
        (texts / f"{code}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return halves


def prepare(tokenizer: Any, halves: Halves, language: str, tokens: int) -> tuple[torch.Tensor, Texts]:
    """Return the tokens to train on, and the windows to measure on; of the Declaration alone without a corpus."""
    begin = beginning(tokenizer)

    def windows(code: str, text: str) -> EvaluationText:
        limit = 4 * tokens if code == language else tokens
        cut, size = evaluation_windows(tokenize(tokenizer, text), begin, limit, SEQUENCE, SEQUENCE)
        return EvaluationText(tuple(cut), size)

    declaration = builtin_corpus("udhr30")
    texts: Texts = {
        "declaration": {code: windows(code, declaration.text(code).evaluate) for code in declaration.languages}
    }
    training = declaration.text(language).score
    if halves:
        texts["corpus"] = {code: windows(code, held_out) for code, (held_out, _) in halves.items()}
        training = halves[language][1]
    return torch.tensor(tokenize(tokenizer, training).ids), texts


def batches(tokens: torch.Tensor, seed: int, rows: int) -> Iterator[torch.Tensor]:
    """Draw windows of the text at random places, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(0, len(tokens) - SEQUENCE + 1, (rows,), generator=generator)
        yield torch.stack([tokens[start : start + SEQUENCE] for start in starts.tolist()])


def record(stack: Stack, texts: Texts, run: dict[str, Any], step: int, reverted: str | None, file: Path) -> None:
    """Measure all texts and append one line."""
    with torch.no_grad():
        nats = {
            register: {
                code: round(found.log_perplexity, 5)
                for code, found in measure_loaded(stack.loaded.model, by_language, 4).items()
            }
            for register, by_language in texts.items()
        }
    line = {**run, "step": step, "reverted": reverted, "nats_per_token": nats}
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def measure_reversions(stack: Stack, kept: dict[str, Frozen], *rest: Any, **more: Any) -> None:
    """Measure the model with each bundle's entries at the base's values, and leave it as it was."""
    trained = {name: tensor.clone() for name, tensor in stack.loaded.model.state_dict().items()}
    for name, frozen in kept.items():
        frozen.restore()
        record(stack, *rest, reverted=name, **more)
        stack.loaded.model.load_state_dict(trained)


def trainable(model: str | Path) -> Stack:
    """Load a model in float32, all of it, to be trained and measured."""
    stack = make_stack(load_model(Checkpoint.open(model), "float32"))
    stack.loaded.weights.fill()
    stack.loaded.model.requires_grad_()
    return stack


def train(
    arm: str, bundles: dict[str, Path], seed: int, tokens: torch.Tensor, texts: Texts, options: argparse.Namespace
) -> None:
    """Train one arm with one seed, measuring on the way, and save what comes out."""
    file = options.output / "curves.jsonl"
    stack = trainable(bundles.get(arm, options.model))
    model = stack.loaded.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=10)
    frozen = freeze(model, bundles[arm], optimizer) if arm in bundles else None
    frozen_parts = [name for name, path in bundles.items() if Bundle.load(path).trained is None]
    reversions = {name: freeze(model, bundles[name]) for name in frozen_parts} if frozen is None else {}
    for kept in reversions.values():
        kept.remove()  # keeps the base's values, and lets everything train
    run = {"arm": arm, "seed": seed, "learning_rate": options.learning_rate, "language": options.language}
    run["trained_on"] = "declaration" if options.corpus is None else "corpus"
    if not file.exists():  # the base, once for all
        record(stack, texts, run, 0, None, file)
    drawn = batches(tokens, seed, options.rows)
    for step in range(1, options.steps + 1):
        batch = next(drawn)
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warmup.step()
        if step in options.measure_at or step == options.steps:
            measure_reversions(stack, reversions, texts, run, file=file, step=step)
            record(stack, texts, run, step, None, file)
    if frozen is not None:
        print(f"{arm}, seed {seed}: {frozen.verify()} frozen entries hold their original bits", flush=True)
    target = options.output / "trained" / f"{arm}-{options.learning_rate:g}-{seed}"
    model.save_pretrained(target)
    stack.loaded.tokenizer.save_pretrained(target)


def is_complete(file: Path, arm: str, seed: int, options: argparse.Namespace) -> bool:
    """True if the last line of this run is there."""
    wanted = (arm, seed, options.learning_rate, options.steps, None)
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return wanted in [(x["arm"], x["seed"], x["learning_rate"], x["step"], x["reverted"]) for x in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, help="output folder of claim5_freeze.yaml; any for `--arms nothing`")
    parser.add_argument("--output", type=Path, help="where curves.jsonl goes; by default the same folder")
    parser.add_argument("--model", default="builtin:tiny30", help="the base of the bundles (default: %(default)s)")
    parser.add_argument("--corpus", type=Path, help="texts to train on; without it the Declaration")
    parser.add_argument("--language", default="zh", help="to train on (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", help="nothing and names of variants; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--measure-at", type=int, nargs="*", default=[30, 60], help="steps; also at start and end")
    parser.add_argument("--rows", type=int, default=4, help="sequences of 256 tokens a step")
    parser.add_argument("--tokens", type=int, default=256, help="to measure on, per language and text")
    options = parser.parse_args()
    options.output = options.output or options.bundles
    options.output.mkdir(parents=True, exist_ok=True)
    bundles = {path.parent.name: path.parent for path in sorted(options.bundles.glob("variants/*/freeze"))}
    missing = [arm for arm in options.arms or () if arm not in bundles and arm != "nothing"]
    if missing or not (bundles or options.arms):
        parser.error(
            f"{options.bundles}: no variant {' '.join(missing)} with a freeze bundle; run claim5_freeze.yaml first"
        )
    tokenizer = load_tokenizer(Checkpoint.open(options.model))
    halves = {} if options.corpus is None else read_corpus(options.corpus, options.output / "texts")
    tokens, texts = prepare(tokenizer, halves, options.language, options.tokens)
    for seed in options.seeds:
        for arm in options.arms or ["nothing", *bundles]:
            if not is_complete(options.output / "curves.jsonl", arm, seed, options):
                train(arm, bundles, seed, tokens, texts, options)


if __name__ == "__main__":
    main()
