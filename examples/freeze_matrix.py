"""Run every setting that is installed here with a frozen model, and print the table of docs/freezing.md.

    python examples/freeze_matrix.py                            # all settings, as a Markdown table
    python examples/freeze_matrix.py --only adamw fsdp2         # those whose name has one of these words
    python examples/freeze_matrix.py --write docs/freezing.md   # put the table between the page's marks
    python examples/freeze_matrix.py --also OTHER/bin/python    # the settings of the Trainer with what is there too

A tiny Llama trains for some steps with 5 % of every tensor frozen, a negative zero and a denormal among them. The
trained weights are compared with the base by this script's own means: raw integers, and indices that were chosen
before the bundle was written. Columns: frozen entries that changed, frozen entries, the share of all others that
changed, whether `Frozen.verify` and `verify_saved` say the same, and, where the promise was broken on purpose, when
that was told. A setting whose package is missing, or does not run here, is listed with the reason.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from freeze_settings import (
    average,
    few,
    lightning,
    loop,
    make_base,
    merge,
    merge_few,
    order,
    sharpness,
    spread,
    told,
    trainer,
)

from surgeon.freeze import Bundle

MARKS = ("<!-- freeze_matrix: begin -->", "<!-- freeze_matrix: end -->")


Run = Callable[[Path, Path], dict[str, Any]]


def steps(name: str, module: str = "torch.optim", **options: Any) -> Run:
    """A plain loop with an optimizer of a module that is imported when the setting is run."""

    def make(parameters: Any) -> Any:
        return getattr(importlib.import_module(module), name)(parameters, **{"lr": 1e-2, **options})

    return partial(loop, make)


# Name of the setting, the package whose version counts, and what runs it.
SETTINGS: list[tuple[str, str, Run]] = [
    ("loop, AdamW, fused", "torch", steps("AdamW", fused=True, weight_decay=0.1)),
    ("loop, AdamW, foreach, AMSGrad", "torch", steps("AdamW", foreach=True, amsgrad=True, weight_decay=0.1)),
    ("loop, SGD, momentum, coupled decay", "torch", steps("SGD", lr=0.1, momentum=0.9, weight_decay=0.1)),
    ("loop, LBFGS", "torch", steps("LBFGS", lr=0.1, max_iter=2)),
    ("loop, Adam", "torch", steps("Adam", weight_decay=0.1)),
    ("loop, NAdam", "torch", steps("NAdam", weight_decay=0.1)),
    ("loop, RAdam", "torch", steps("RAdam", weight_decay=0.1)),
    ("loop, Adamax", "torch", steps("Adamax", weight_decay=0.1)),
    ("loop, Adagrad", "torch", steps("Adagrad", weight_decay=0.1)),
    ("loop, ASGD", "torch", steps("ASGD", weight_decay=0.1)),
    ("loop, RMSprop", "torch", steps("RMSprop", weight_decay=0.1)),
    ("loop, Adafactor", "torch", steps("Adafactor", weight_decay=0.1)),
    ("loop, Adadelta", "torch", steps("Adadelta", lr=1.0, weight_decay=0.1)),
    ("loop, Rprop", "torch", steps("Rprop")),
    ("loop, AdamW8bit (torchao)", "torchao", steps("AdamW8bit", "torchao.optim", weight_decay=0.1)),
    ("loop, AdamW4bit (torchao)", "torchao", steps("AdamW4bit", "torchao.optim", weight_decay=0.1)),
    ("loop, AdamW8bit (bitsandbytes)", "bitsandbytes", steps("AdamW8bit", "bitsandbytes.optim", weight_decay=0.1)),
    ("loop, Lion", "lion-pytorch", steps("Lion", "lion_pytorch", weight_decay=0.1)),
    ("loop, SOAP", "pytorch_optimizer", steps("SOAP", "pytorch_optimizer", weight_decay=0.1)),
    ("loop, torch.compile", "torch", partial(steps("AdamW", weight_decay=0.1), compiled=True)),
    ("loop, EMA (`swa_utils.AveragedModel`)", "torch", average),
    ("loop, train_only", "torch", few),
    ("two optimizers, one made late; frozen before them", "torch", partial(order, "first")),
    ("two optimizers, one made late; frozen twice", "torch", partial(order, "run twice")),
    ("two optimizers, one made late; `load_state_dict(assign=True)`", "torch", partial(order, "replaced")),
    ("two optimizers, one made late; vocabulary enlarged", "torch", partial(order, "enlarged")),
    ("two optimizers, one made late; saved in bfloat16", "torch", partial(order, "converted")),
    ("loop, SAM", "torch", sharpness),
    ("broken: average made before, saved", "torch", partial(told, "average")),
    ("broken: steps in the backward pass (LOMO)", "torch", partial(told, "in backward")),
    ("broken: weights clamped before step 2", "torch", partial(told, "clamped")),
    ("Trainer, adamw_torch_fused", "transformers", partial(trainer, optim="adamw_torch_fused")),
    ("Trainer, adafactor", "transformers", partial(trainer, optim="adafactor")),
    ("Trainer, adamw_torch_8bit", "transformers", partial(trainer, optim="adamw_torch_8bit")),
    ("Trainer, adamw_torch_4bit", "transformers", partial(trainer, optim="adamw_torch_4bit")),
    ("SFTTrainer", "trl", partial(trainer, kind="SFT")),
    ("SFTTrainer, adamw_8bit", "bitsandbytes", partial(trainer, kind="SFT", optim="adamw_8bit")),
    ("DPOTrainer", "trl", partial(trainer, kind="DPO")),
    ("Lightning", "lightning", lightning),
    ("Lightning, EMAWeightAveraging", "lightning", partial(lightning, averaging="EMA")),
    ("Lightning, StochasticWeightAveraging", "lightning", partial(lightning, averaging="SWA")),
    ("LoRA merged", "peft", merge),
    ("LoRA merged, train_only", "peft", partial(merge_few, "LoRA")),
    ("SHiRA of what trains, saved, loaded, merged", "peft", partial(merge_few, "SHiRA")),
    ("DDP, two processes", "torch", partial(spread, "DDP")),
    ("DDP with PowerSGD, two processes", "torch", partial(spread, "DDP with PowerSGD")),
    ("FSDP2, two processes", "torch", partial(spread, "FSDP2")),
    ("FSDP2, frozen before, two processes", "torch", partial(spread, "FSDP2, frozen before")),
    ("tensor parallel, two processes", "torch", partial(spread, "tensor parallel")),
    ("ZeRO-1, two processes", "deepspeed", partial(spread, "ZeRO-1")),
    ("ZeRO-2, two processes", "deepspeed", partial(spread, "ZeRO-2")),
    ("ZeRO-3, two processes", "deepspeed", partial(spread, "ZeRO-3")),
    ("ZeRO-2, frozen before, two processes", "deepspeed", partial(spread, "ZeRO-2 before")),
    ("ZeRO-3, frozen before, two processes", "deepspeed", partial(spread, "ZeRO-3 before")),
]


def row(name: str, package: str, run: Run, base: Path) -> str:
    try:
        label = f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"| {name} | {package} | not installed | | | | |"
    try:
        with tempfile.TemporaryDirectory() as output:
            found = run(base, Path(output))
    except Exception as error:
        traceback.print_exc()
        return f"| {name} | {label} | does not run here: {' '.join(str(error).split())[:90]} | | | | |"
    proof = "agrees" if found["proof"] else "DISAGREES"
    when = found.get("told", "nothing to tell")
    share = f"{100 * found['trained']:.0f} %"
    return f"| {name} | {label} | {found['changed']} | {found['frozen']:,} | {share} | {proof} | {when} |"


def elsewhere(python: str) -> str:
    """Return the table that this script prints in another environment, of the settings of the Trainer's family."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [python, __file__, "--only", "Trainer"]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout
    head, *rows = [line for line in printed.splitlines() if line.startswith(("Python ", "| ", "|-"))]
    return "\n".join(["", head, "", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="words of which a setting's name has one")
    parser.add_argument("--also", nargs="*", default=[], help="Pythons with other releases, of transformers say")
    parser.add_argument("--write", type=Path, help="a page to put the table into, between its marks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    python = ".".join(map(str, sys.version_info[:3]))
    head = f"Python {python}, torch {torch.__version__}, transformers {transformers.__version__}, on a CPU.\n\n"
    head += "| setting | package | changed | frozen | others trained | proof | told |\n" + "|---" * 7 + "|"
    lines = [head]
    print(head)
    with tempfile.TemporaryDirectory() as folder:
        make_base(Path(folder))
        assert Bundle.load(folder).entries
        for name, package, run in SETTINGS:
            if not arguments.only or any(word.lower() in name.lower() for word in arguments.only):
                lines.append(row(name, package, run, Path(folder)))
                print(lines[-1], flush=True)
    for python in arguments.also:
        lines.append(elsewhere(python))
        print(lines[-1], flush=True)
    if arguments.write:
        before, _, rest = arguments.write.read_text(encoding="utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        table = "\n".join(lines)
        arguments.write.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
