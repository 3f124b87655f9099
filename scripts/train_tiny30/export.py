"""Step 3 of `builtin:tiny30`: round a checkpoint to bfloat16, measure it, write its card, put it in place.

python export.py WORK/final --texts ../../surgeon/assets/udhr30 --output ../../surgeon/assets/tiny30
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from string import Template
from typing import Any

import torch
from measure import measure
from transformers import AutoModelForCausalLM, AutoTokenizer

CARD = Path(__file__).resolve().with_name("model_card.md")
TOKENIZER_SETTINGS = "tokenizer_config.json"


def ratio_table(evaluation: dict[str, Any]) -> str:
    """Write the ratios of the cuts as a Markdown table."""
    lines = ["| zeroed, per tensor | perplexity, times the base's |", "|---|---:|"]
    lines += [f"| {name} | {ratio:.3f} |" for name, ratio in evaluation["ratios"].items()]
    return "\n".join(lines)


def language_table(evaluation: dict[str, Any], scoring: dict[str, Any]) -> str:
    """Write perplexity and bits per byte of every language as a Markdown table."""
    lines = ["| language | perplexity (eval) | bits per byte (eval) | perplexity (score) |", "|---|---:|---:|---:|"]
    for language, figures in evaluation["languages"].items():
        seen = scoring["languages"][language]["perplexity"]
        lines.append(f"| {language} | {figures['perplexity']:.1f} | {figures['bits_per_byte']:.2f} | {seen:.1f} |")
    return "\n".join(lines)


def render_card(
    folder: Path, size: tuple[int, float], steps: int, evaluation: dict[str, Any], scoring: dict[str, Any]
) -> str:
    """Fill the model card's template with the measured figures."""
    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Template(CARD.read_text(encoding="utf-8")).substitute(
        parameters=f"{size[0] / 1e6:.2f}",
        zeros=f"{100 * size[1]:.1f}",
        steps=steps,
        layers=shape["num_hidden_layers"],
        hidden=shape["hidden_size"],
        heads=shape["num_attention_heads"],
        key_value_heads=shape["num_key_value_heads"],
        feed_forward=shape["intermediate_size"],
        vocabulary=shape["vocab_size"],
        perplexity=f"{evaluation['perplexity']:.1f}",
        bits_per_byte=f"{evaluation['bits_per_byte']:.2f}",
        seen=f"{scoring['perplexity']:.1f}",
        ratios=ratio_table(evaluation),
        languages=language_table(evaluation, scoring),
    )


def save_rounded(checkpoint: Path, folder: Path) -> tuple[int, float]:
    """Save model and tokenizer; return the number of parameters and the share of zeros in the decoder's matrices."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    settings = json.loads((folder / TOKENIZER_SETTINGS).read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that every version of transformers knows
    (folder / TOKENIZER_SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    matrices = [entry for name, entry in model.named_parameters() if "layers." in name and entry.ndim == 2]
    zeros = sum(int((matrix == 0).sum()) for matrix in matrices) / sum(matrix.numel() for matrix in matrices)
    return model.num_parameters(), zeros


def steps_taken(checkpoint: Path) -> int:
    """Return the number of optimizer steps behind the checkpoint."""
    steps: int = torch.load(checkpoint / "state.pt", weights_only=True)["step"]
    return steps


def put_in_place(new: Path, place: Path) -> None:
    """Replace a folder by a finished one beside it, with two renames."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    """Parse the arguments and export."""
    parser = argparse.ArgumentParser(description="Export a checkpoint as the builtin model.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--texts", type=Path, required=True, help="folder with score/ and eval/")
    parser.add_argument("--output", type=Path, required=True, help="folder of the builtin model, replaced as a whole")
    arguments = parser.parse_args()

    staged = arguments.output.with_name(f".{arguments.output.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    size = save_rounded(arguments.checkpoint, staged)
    evaluation, scoring = (measure(staged, arguments.texts, half) for half in ("eval", "score"))
    card = render_card(staged, size, steps_taken(arguments.checkpoint), evaluation, scoring)
    (staged / "README.md").write_text(card, encoding="utf-8", newline="\n")
    put_in_place(staged, arguments.output)
    print(json.dumps(evaluation, indent=2))


if __name__ == "__main__":
    main()
