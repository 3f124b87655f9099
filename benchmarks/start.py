"""What a command costs before it does anything: processor and wall seconds beside `python -c pass`.

    python benchmarks/start.py [--rounds 7] [--model builtin:tiny30]

The smallest of all rounds, each command in a fresh process of one thread, with what an earlier run remembers of the
model in the cache: `apply` writes a random 1 % of the model and runs none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from costs import in_turn, one_thread, where

RECIPE = """
version: 1
name: start
model: {model}
regions: {{r: {{select: {{random: 0.01, seed: 1}}, exclude: [norm]}}}}
variants: {{cut: {{operations: [{{zero: r}}]}}}}
output: {folder}/out
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="builtin:tiny30")
    arguments = parser.parse_args()
    model = arguments.model if arguments.model.startswith("builtin:") else str(Path(arguments.model).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        recipe = Path(temporary) / "recipe.yaml"
        recipe.write_text(RECIPE.format(model=model, folder=temporary), encoding="utf-8")
        surgeon = [sys.executable, "-m", "surgeon"]
        commands = {
            "pass": [sys.executable, "-c", "pass"],
            "--help": [*surgeon, "--help"],
            "inspect": [*surgeon, "inspect", model],
            "plan": [*surgeon, "plan", "zero_core", "--set", f"model={model}"],
            "apply": [*surgeon, "apply", str(recipe), "--overwrite"],
            "torch": [sys.executable, "-c", "import torch, transformers"],
        }
        environment = {**one_thread(), "SURGEON_CACHE": f"{temporary}/cache", "PYTHONDONTWRITEBYTECODE": ""}
        found = in_turn(commands, arguments.rounds + 1, environment)
    print(where("torch", "transformers", "pydantic", "typer"))
    print(f"{'':10} {'cpu s':>8} {'wall s':>8} {'cpu above pass':>16} {'peak MB':>8}")
    least = {name: min(cost.processor for cost in costs) for name, costs in found.items()}
    for name, costs in found.items():
        wall, peak = min(cost.wall for cost in costs), max(cost.peak for cost in costs) / 1e6
        print(f"{name:10} {least[name]:8.2f} {wall:8.2f} {least[name] - least['pass']:16.2f} {peak:8.0f}")


if __name__ == "__main__":
    main()
