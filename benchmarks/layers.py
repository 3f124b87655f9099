"""Score, cut and verify a model larger than memory: what it takes, beside what the plan says that it takes.

    python benchmarks/layers.py WORK [--layers 32] [--hidden 3072] [--tokens 256] [--limit 3.0]

Makes a Llama-shaped bfloat16 checkpoint of random weights in WORK (6.4 GB with the defaults; the builtin model's
tokenizer), then runs `surgeon apply` on it: two languages scored, the core and its controls selected, the base and
three variants verified, one written. Prints the time of each step, wall and processor time of all, the highest
anonymous memory seen, sampled every 20 ms, and the plan's estimate of it. Exit code 1 if memory went over --limit
gigabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from surgeon.api import plan_recipe
from surgeon.checkpoint.checkpoint import Checkpoint

RECIPE = """\
version: 1
name: layers
model: {model}
regions:
  core:
    score: {{kind: grad_param, languages: [ar, zh], samples: {samples}, sequence_length: 256, batch_size: 1}}
    select: {{top: 0.01}}
    exclude: [norm]
  bottom: {{control: {{of: core, draw: bottom}}}}
  random: {{control: {{of: core, draw: random}}}}
variants:
  core-zeroed: {{operations: [{{zero: core}}]}}
  bottom-zeroed: {{operations: [{{zero: bottom}}], write: false}}
  random-zeroed: {{operations: [{{zero: random}}], write: false}}
verify: {{languages: [en, ar], tokens: 128, window: 128}}
output: {output}
"""


def make_checkpoint(folder: Path, layers: int, hidden: int) -> None:
    """Write the checkpoint, a shard a layer; one block of random numbers, rolled, serves all of them."""
    builtin = Checkpoint.open("builtin:tiny30")
    vocabulary = int(builtin.config["vocab_size"])
    heads, wide = hidden // 128, hidden * 8 // 3 // 128 * 128
    kv = max(1, heads // 3) * 128
    folder.mkdir(parents=True)
    for path in builtin.folder.iterdir():
        if path.name.startswith(("tokenizer", "special")):
            shutil.copyfile(path, folder / path.name)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": wide,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv // 128, "head_dim": 128,
        "vocab_size": vocabulary, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "bos_token_id": None, "eos_token_id": 0, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }  # fmt: skip
    random = np.random.default_rng(0)
    block = (0.02 * random.standard_normal(wide * hidden, dtype=np.float32)).astype(ml_dtypes.bfloat16)
    ones = np.ones(hidden, dtype=ml_dtypes.bfloat16)
    embedding = (0.02 * random.standard_normal((vocabulary, hidden), dtype=np.float32)).astype(ml_dtypes.bfloat16)
    count, weight_map = layers + 1, {}
    for number in range(count):
        name, tensors = f"model-{number + 1:05d}-of-{count:05d}.safetensors", {}
        if number < layers:
            prefix = f"model.layers.{number}."
            for i, (module, shape) in enumerate(shapes.items()):
                rolled = np.roll(block, 7919 * number + 104729 * i)[: shape[0] * shape[1]]
                tensors[f"{prefix}{module}.weight"] = rolled.reshape(shape)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}{norm}.weight"] = ones
        else:
            tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": ones}
        save_file(tensors, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def watched(command: list[str], environment: dict[str, str]) -> tuple[int, int, str]:
    """Run a command; returns its exit code, the highest anonymous memory in bytes, and what it said."""
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        found = re.search(r"RssAnon:\s+(\d+)", status.read_text())
        peak = max(peak, int(found[1]) * 1024 if found else 0)
        time.sleep(0.02)
    assert process.stderr is not None
    return process.returncode, peak, process.stderr.read()


def main() -> None:
    parser = argparse.ArgumentParser(description="Score, cut and verify a model larger than memory.")
    parser.add_argument("work", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--tokens", type=int, default=256, help="to score on, per language")
    parser.add_argument("--limit", type=float, default=3.0, help="gigabytes of anonymous memory")
    options = parser.parse_args()
    model = options.work / f"model-{options.layers}-{options.hidden}"
    if not (model / "model.safetensors.index.json").is_file():
        shutil.rmtree(model, ignore_errors=True)
        make_checkpoint(model, options.layers, options.hidden)
    recipe = options.work / "recipe.yaml"
    samples = max(1, options.tokens // 256)
    recipe.write_text(RECIPE.format(model=model, output=options.work / "out", samples=samples))
    environment = {**os.environ, "SURGEON_CACHE": str(options.work / "cache")}
    os.environ["SURGEON_CACHE"] = environment["SURGEON_CACHE"]
    plan = plan_recipe(recipe)
    size = plan.checkpoint.data_bytes
    print(
        f"{size / 1e9:.1f} GB on disk, {sum(i.numel for i in plan.checkpoint.tensors.values()) / 1e9:.2f} B parameters"
    )
    started = time.perf_counter()
    code, peak, said = watched([sys.executable, "-m", "surgeon", "apply", str(recipe)], environment)
    print(said.rstrip())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, processor = time.perf_counter() - started, used.ru_utime + used.ru_stime
    print(f"apply: exit code {code}, {seconds:.0f} s, {processor:.0f} s of processor time")
    print(f"peak of anonymous memory {peak / 1e9:.2f} GB; planned {plan.peak_memory / 1e9:.2f} GB")
    print(f"disk planned {plan.disk_needed / 1e9:.1f} GB")
    raise SystemExit(int(code != 0 or peak > options.limit * 1e9))


if __name__ == "__main__":
    main()
