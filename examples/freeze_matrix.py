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
import functools
import importlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
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


def of(module: str, name: str, **options: Any) -> Callable[[Any], Any]:
    def make(parameters: Any) -> Any:
        return getattr(importlib.import_module(module), name)(parameters, **options)

    return make


def settings() -> dict[str, tuple[str, Callable[[Path, Path], dict[str, Any]]]]:
    """Name each setting; with it, the package whose version counts."""
    decay = {"weight_decay": 0.1}
    torch_ones = {
        "AdamW, fused": ("AdamW", {"lr": 1e-2, "fused": True, **decay}),
        "AdamW, foreach, AMSGrad": ("AdamW", {"lr": 1e-2, "foreach": True, "amsgrad": True, **decay}),
        "SGD, momentum, coupled decay": ("SGD", {"lr": 0.1, "momentum": 0.9, **decay}),
        "LBFGS": ("LBFGS", {"lr": 0.1, "max_iter": 2}),
        **{
            name: (name, {"lr": 1e-2, **decay})
            for name in ("Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "ASGD", "RMSprop", "Adafactor")
        },
        "Adadelta": ("Adadelta", {"lr": 1.0, **decay}),
        "Rprop": ("Rprop", {"lr": 1e-2}),
    }
    others = {
        "AdamW8bit (torchao)": ("torchao", "torchao.optim", "AdamW8bit", {"lr": 1e-2, **decay}),
        "AdamW4bit (torchao)": ("torchao", "torchao.optim", "AdamW4bit", {"lr": 1e-2, **decay}),
        "AdamW8bit (bitsandbytes)": ("bitsandbytes", "bitsandbytes.optim", "AdamW8bit", {"lr": 1e-2, **decay}),
        "Lion": ("lion-pytorch", "lion_pytorch", "Lion", {"lr": 1e-2, **decay}),
        "SOAP": ("pytorch_optimizer", "pytorch_optimizer", "SOAP", {"lr": 1e-2, **decay}),
    }
    plain = {
        f"loop, {label}": ("torch", functools.partial(loop, of("torch.optim", name, **options)))
        for label, (name, options) in torch_ones.items()
    }
    low = {
        f"loop, {label}": (package, functools.partial(loop, of(module, name, **options)))
        for label, (package, module, name, options) in others.items()
    }
    fused = of("torch.optim", "AdamW", lr=1e-2, weight_decay=0.1)
    two = ["DDP", "DDP with PowerSGD", "FSDP2", "FSDP2, frozen before", "tensor parallel"]
    return {
        **plain,
        **low,
        "loop, torch.compile": ("torch", functools.partial(loop, fused, compiled=True)),
        "loop, EMA (`swa_utils.AveragedModel`)": ("torch", average),
        "loop, train_only": ("torch", few),
        **{
            f"two optimizers, one made late; {label}": ("torch", functools.partial(order, kind))
            for kind, label in {
                "first": "frozen before them",
                "run twice": "frozen twice",
                "replaced": "`load_state_dict(assign=True)`",
                "enlarged": "vocabulary enlarged",
                "converted": "saved in bfloat16",
            }.items()
        },
        "loop, SAM": ("torch", sharpness),
        "broken: average made before, saved": ("torch", functools.partial(told, "average")),
        "broken: steps in the backward pass (LOMO)": ("torch", functools.partial(told, "in backward")),
        "broken: weights clamped before step 2": ("torch", functools.partial(told, "clamped")),
        **{
            f"Trainer, {optim}": ("transformers", functools.partial(trainer, optim=optim))
            for optim in ("adamw_torch_fused", "adafactor", "adamw_torch_8bit", "adamw_torch_4bit")
        },
        "SFTTrainer": ("trl", functools.partial(trainer, kind="SFT")),
        "SFTTrainer, adamw_8bit": ("bitsandbytes", functools.partial(trainer, kind="SFT", optim="adamw_8bit")),
        "DPOTrainer": ("trl", functools.partial(trainer, kind="DPO")),
        "Lightning": ("lightning", lightning),
        "Lightning, EMAWeightAveraging": ("lightning", functools.partial(lightning, averaging="EMA")),
        "Lightning, StochasticWeightAveraging": ("lightning", functools.partial(lightning, averaging="SWA")),
        "LoRA merged": ("peft", merge),
        "LoRA merged, train_only": ("peft", functools.partial(merge_few, "LoRA")),
        "SHiRA of what trains, saved, loaded, merged": ("peft", functools.partial(merge_few, "SHiRA")),
        **{f"{kind}, two processes": ("torch", functools.partial(spread, kind)) for kind in two},
        **{f"ZeRO-{i}, two processes": ("deepspeed", functools.partial(spread, f"ZeRO-{i}")) for i in (1, 2, 3)},
        **{
            f"ZeRO-{i}, frozen before, two processes": ("deepspeed", functools.partial(spread, f"ZeRO-{i} before"))
            for i in (2, 3)
        },
    }


def row(name: str, package: str, run: Callable[[Path, Path], dict[str, Any]], base: Path) -> str:
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
        for name, (package, run) in settings().items():
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
