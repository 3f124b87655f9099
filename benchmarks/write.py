"""What writing variants costs beside `cp -r`: wall time as ratios, and peak anonymous memory.

    python benchmarks/write.py [--gigabytes 2] [--runs 5] [--region 0.01] [--scratch DIR] [--mergekit BIN/mergekit-yaml]
        [--fp8] [--only NAMES]

Makes a sharded bfloat16 checkpoint of Llama-like tensors with random bytes (with --fp8 their matrices are in FP8 with
scales of blocks of 128 x 128), a region file of a random share of its
matrices, and one of a single matrix; then runs in turn, each as a fresh process, and flushed unless it says otherwise:

    cp       cp -r SOURCE TARGET                                      not flushed
    stage    python: open, load the region, copy, poke and hash       not flushed
    sync     cp -r SOURCE TARGET, then sync of the target's files
    write    python: surgeon.write_variant (stage, flush, rename)
    scale    surgeon apply of a variant with half of each entry; `louder`: three times each entry
    apply    surgeon apply of the same as a recipe without verification: regions, report and manifest with the SHA-256
             of inputs and outputs included; the source's hashes are remembered
    first    the same with an empty cache, so that the source is hashed too
    again    the same with nothing to do but to prove that all is there
    one      surgeon apply of a region in a single matrix
    patch    the same, written as a patch
    sync3    three copies, then sync
    three    surgeon apply with three variants
    save     transformers: load in bfloat16, zero the entries in place, save_pretrained, flush
    merge    mergekit: a merge of one model, which is to copy it, flush; if --mergekit is given

and prints each one's median wall time, its ratio to the command that it is to be compared with, as smallest, median and
largest of the rounds, and its peak anonymous memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from surgeon.anatomy.scope import scope
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.storage import allocate_file, map_bytes, view
from surgeon.checkpoint.weight_files import INDEX_NAME
from surgeon.region.region import Region
from surgeon.region.select import select_random

HIDDEN, WIDE = 2048, 5632
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN // 4, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 4, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDE, HIDDEN), "mlp.up_proj": (WIDE, HIDDEN), "mlp.down_proj": (HIDDEN, WIDE),
}  # fmt: skip

SHAPES |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (HIDDEN,))
OUTSIDE = {
    "model.embed_tokens.weight": (1024, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (1024, HIDDEN),
}  # fmt: skip
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDE,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 1024,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip

WRITE = """
import surgeon, sys
from pathlib import Path
from surgeon.model.workplace import Workplace
from surgeon.operations import OPERATIONS
from surgeon.operations.edits import Surgery
from surgeon.write.staging import stage_variant, write_variant
checkpoint, region = surgeon.Checkpoint.open(sys.argv[1]), surgeon.Region.load(sys.argv[2])
given, target = (checkpoint, [OPERATIONS["zero"](zero="r")], {{"r": region}}), Path(sys.argv[3])
{call}
"""

RECIPE = """
version: 1
name: write
model: {source}
regions: {{r: {{file: {region}}}}}
variants: {{{variants}}}
output: {output}
"""
SAVE = """
import os, sys
import torch, transformers
from surgeon.region.region import Region
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
region, parameters = Region.load(sys.argv[2]), dict(model.named_parameters())
for name in region:
    parameters[name].data.view(-1)[torch.from_numpy(region.indices(name))] = 0
model.save_pretrained(sys.argv[3])
for name in os.listdir(sys.argv[3]):
    with open(f"{sys.argv[3]}/{name}", "rb") as file:
        os.fsync(file.fileno())
"""
MERGE = "merge_method: passthrough\nmodels: [{{model: {source}}}]\ndtype: bfloat16\n"
# What each command is compared with.
REFERENCES = {
    "cp": "cp", "stage": "cp", "sync": "sync", "write": "sync", "apply": "sync", "first": "sync", "again": "sync",
    "one": "sync", "patch": "sync", "scale": "sync", "louder": "sync", "sync3": "sync3", "three": "sync3",
    "save": "sync", "merge": "sync",
}  # fmt: skip


def make_checkpoint(folder: Path, gigabytes: float, fp8: bool = False) -> None:
    """Write shards of three layers each until the size is reached."""
    generator = np.random.default_rng(0)
    layer_bytes = (1 if fp8 else 2) * sum(math.prod(shape) for shape in SHAPES.values())
    layers = max(1, round(gigabytes * 1e9 / layer_bytes))
    groups = [range(start, min(start + 3, layers)) for start in range(0, layers, 3)]
    weight_map = {}
    folder.mkdir(parents=True)
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        specs = []
        for name, shape in (
            (f"model.layers.{i}.{name}.weight", shape) for i in group for name, shape in SHAPES.items()
        ):
            coded = fp8 and len(shape) > 1
            specs.append((name, "F8_E4M3" if coded else "BF16", shape))
            specs += [(f"{name}_scale_inv", "F32", tuple(-(-n // 128) for n in shape))] if coded else []
        specs += [(name, "BF16", shape) for name, shape in OUTSIDE.items()] if number == 1 else []
        header = allocate_file(folder / file, specs, {"format": "pt"})
        data = map_bytes(folder / file, "shared")
        for info in header.tensors.values():
            weight_map[info.name] = file
            if info.dtype == "F32":
                view(data, info)[...] = 2e-4
                continue
            if info.dtype == "F8_E4M3":  # any code but those of not-a-number
                codes = generator.integers(0, 0x7F, info.numel, dtype=np.uint8)
                view(data, info).reshape(-1).view(np.uint8)[:] = codes | (codes & 1) << 7
                continue
            # Exponents of ordinary weights: random sign and mantissa, values around 0.01.
            words = generator.integers(0, 1 << 16, info.numel, dtype=np.uint16)
            view(data, info).reshape(-1).view(np.uint16)[:] = (words & 0x807F) | 0x3C00
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    said = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}} if fp8 else {}
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers, **said}))


def make_region(source: Path, path: Path, fraction: float, count: int | None = None) -> None:
    """Write a random region of the matrices, or of the first `count` of them."""
    tensors = [info for info in scope(Checkpoint.open(source)).tensors if len(info.shape) > 1][:count]
    chosen = {info.name: select_random([(info.name, info.numel)], fraction, 0)[info.name] for info in tensors}
    Region.from_indices(chosen, {info.name: info.shape for info in tensors}).save(path)


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Run a command and return its wall seconds and peak anonymous bytes."""
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:3])} failed with {process.returncode}")
    return seconds, peak


def anonymous_bytes(pid: int) -> int:
    """Anonymous resident memory of a process (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)


def commands_for(
    folder: Path, source: Path, target: Path, regions: dict[str, Path], mergekit: str | None
) -> dict[str, list[str]]:
    """Return what is run, by name."""
    cut = "operations: [{zero: r}]"
    variants = {
        "scale": "v: {operations: [{scale: r, by: 0.5}]}", "louder": "v: {operations: [{scale: r, by: 3.0}]}",
        "apply": f"v: {{{cut}}}", "one": f"v: {{{cut}}}", "patch": f"v: {{{cut}, write: patch}}",
        "three": f"v: {{{cut}}}, w: {{{cut}}}, x: {{{cut}}}",
    }  # fmt: skip
    for name, text in variants.items():
        region = regions["single" if name in ("one", "patch") else "all"]
        recipe = RECIPE.format(source=source, region=region, variants=text, output=target)
        (folder / f"{name}.yaml").write_text(recipe, encoding="utf-8")
    flush = f"find {target} -type f -exec sync {{}} +"
    python = {
        name: [sys.executable, "-c", WRITE.format(call=call), str(source), str(regions["all"]), str(target)]
        for name, call in (
            ("stage", 'stage_variant(Surgery(*given), target, Workplace("cpu", 2))'),
            ("write", "write_variant(*given, target)"),
        )
    }
    apply = {name: [sys.executable, "-m", "surgeon", "apply", str(folder / f"{name}.yaml")] for name in variants}
    (folder / "merge.yaml").write_text(MERGE.format(source=source), encoding="utf-8")
    merge = f"{mergekit} {folder}/merge.yaml {target} --lazy-unpickle && {flush}"
    copies = " && ".join(f"cp -r {source} {target}/{name}" for name in "vwx")
    return {
        "cp": ["cp", "-r", str(source), str(target)],
        "stage": python["stage"],
        "sync": ["sh", "-c", f"cp -r {source} {target} && {flush}"],
        "write": python["write"],
        "first": apply["apply"],
        "apply": apply["apply"],
        "again": apply["apply"],
        "one": apply["one"],
        "patch": apply["patch"],
        "sync3": ["sh", "-c", f"mkdir {target} && {copies} && {flush}"],
        "three": apply["three"],
        "scale": apply["scale"],
        "louder": apply["louder"],
        "save": [sys.executable, "-c", SAVE, str(source), str(regions["all"]), str(target)],
        **({} if mergekit is None else {"merge": ["sh", "-c", merge]}),
    }


def main() -> None:
    """Make the inputs, run all commands in turn, print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--region", type=float, default=0.01)
    parser.add_argument("--fp8", action="store_true", help="a checkpoint in FP8 with block scales")
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--mergekit", default=None, help="the command `mergekit-yaml` of an environment that has it")
    parser.add_argument("--only", default=None, help="comma-separated names, with those they are compared with")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        source, target, cache = folder / "source", folder / "target", folder / "cache"
        make_checkpoint(source, arguments.gigabytes, arguments.fp8)
        regions = {"all": folder / "r.safetensors", "single": folder / "s.safetensors"}
        make_region(source, regions["all"], arguments.region)
        make_region(source, regions["single"], arguments.region, 1)
        environment = {**os.environ, "SURGEON_CACHE": str(cache)}
        commands = commands_for(folder, source, target, regions, arguments.mergekit)
        chosen = list(commands) if arguments.only is None else arguments.only.split(",")
        results: dict[str, list[tuple[float, int]]] = {name: [] for name in chosen}
        for _ in range(arguments.runs + 1):
            for name in chosen:
                if name == "first":
                    shutil.rmtree(cache, ignore_errors=True)
                if name != "again":
                    shutil.rmtree(target, ignore_errors=True)
                shutil.rmtree(target.with_name(f".{target.name}.staging"), ignore_errors=True)
                results[name].append(timed(commands[name], environment))
        size = sum(path.stat().st_size for path in source.iterdir()) / 1e9
        shards = len(list(source.glob("*.safetensors")))
        print(f"{size:.2f} GB in {shards} shards; {arguments.runs} runs after one warm-up")
        print_table({name: measured[1:] for name, measured in results.items()})


def print_table(results: dict[str, list[tuple[float, int]]]) -> None:
    """Print medians, ratios within each round (minimum, median, maximum) and peaks."""
    print(f"{'':6} {'median s':>9} {'compared with':>14} {'ratio':>18} {'peak anonymous MB':>18}")
    for name, measured in results.items():
        reference = REFERENCES[name]
        ratios = sorted(a / b for (a, _), (b, _) in zip(measured, results.get(reference, measured), strict=True))
        ratio = f"{ratios[0]:.2f} {statistics.median(ratios):.2f} {ratios[-1]:.2f}"
        seconds = statistics.median(seconds for seconds, _ in measured)
        peak = max(peak for _, peak in measured) / 1e6
        print(f"{name:6} {seconds:9.2f} {reference:>14} {ratio:>18} {peak:18.0f}")


if __name__ == "__main__":
    main()
