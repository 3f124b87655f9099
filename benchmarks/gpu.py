"""What a GPU does: is it right, how fast, how much memory; one command, and a table for docs/scale.md.

    python benchmarks/gpu.py WORK [--device cuda] [--size tiny|full] [--families llama qwen3 ...]

Needs the checkout, torch and transformers; a package that is missing is told first. Writes WORK/gpu.json and
WORK/gpu.md.

    right      scores, regions and perplexities of the builtin model and of small random models of six families, beside
               the CPU's: Jaccard of regions, the largest relative difference of a score and of a perplexity
    fast       `zero_core` on a random Llama made on the spot (8B at full size): seconds by step, tokens a second beside
               transformers' own forward and backward pass of the same batches, in float32 and in bfloat16
    memory     the highest that the device held, beside what the plan said
    variants   eight variants verified in one pass, beside eight times the base alone
    shares     of the time of a run: in arithmetic, in copies, and neither
    nccl       the same recipe under torchrun with one rank
    mixture    the core of a random mixture of 30 billion parameters, with `--mixture`

A CPU skips the last three, and memory, in words. At tiny size it runs on one in a minute; the tests run it so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEEDED = ("torch", "transformers", "safetensors", "numpy", "pydantic", "yaml", "datasets", "huggingface_hub")
FAMILIES = ("llama", "qwen3", "gemma2", "gpt2", "mixtral", "granite")
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4, "n_embd": 64, "n_layer": 2, "n_head": 4,
         "max_position_embeddings": 512, "n_positions": 512}  # fmt: skip
LARGE = {"tiny": SMALL, "full": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                                 "num_attention_heads": 32, "num_key_value_heads": 8}}  # fmt: skip
MIXTURE = {"hidden_size": 2048, "moe_intermediate_size": 768, "intermediate_size": 6144, "num_hidden_layers": 48,
           "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
           "num_experts_per_tok": 8}  # fmt: skip
TAKES_A_GPU = "skipped: it takes a GPU"
SAMPLE = {"tiny": (2, 32), "full": (64, 256)}  # sequences a language, and their length
RECIPE = """
version: 1
name: gpu
model: {model}
corpus: builtin:udhr30
regions:
  core:
    score: {{kind: grad_param, languages: [ar, en], samples: {samples}, sequence_length: {length}, dtype: {dtype}}}
    select: {{top: 0.01}}
  lowest: {{from: core, select: {{bottom: 0.01}}}}
variants:
{variants}
verify: {{languages: [ar, en], tokens: {length}, window: {length}}}
output: {out}
"""


def missing() -> list[str]:
    """Return the packages that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def random_model(family: str, sizes: dict[str, int], folder: Path, device: str) -> Path:
    """Make a model with random weights in bfloat16, and the builtin model's tokenizer beside it."""
    import torch
    import transformers

    from surgeon.checkpoint.checkpoint import Checkpoint
    from surgeon.checkpoint.companions import is_tokenizers

    builtin = Checkpoint.open("builtin:tiny30")
    config = transformers.AutoConfig.for_model(family)
    for name, value in sizes.items():
        if hasattr(config, name):
            setattr(config, name, value)
    config.vocab_size = int(builtin.config["vocab_size"])
    config.layer_types = None if not hasattr(config, "layer_types") else config.layer_types[: config.num_hidden_layers]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, None)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for path in builtin.folder.iterdir():
        if is_tokenizers(path.name):
            shutil.copy(path, folder / path.name)
    return folder


def recipe(folder: Path, model: str, size: str, dtype: str = "auto", variants: int = 1) -> Path:
    samples, length = SAMPLE[size]
    lines = [f"  cut{i}: {{operations: [{{zero: core}}], write: false}}" for i in range(variants)]
    folder.mkdir(parents=True, exist_ok=True)
    text = RECIPE.format(
        model=model, samples=samples, length=length, dtype=dtype, variants="\n".join(lines), out=folder / "out"
    )
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return folder / "recipe.yaml"


def applied(folder: Path, model: str, size: str, device: str, **more: Any) -> dict[str, Any]:
    """Carry a recipe out with a cache of its own; returns regions, scores by language, perplexities, seconds."""
    from safetensors import safe_open

    import surgeon
    import surgeon.run

    surgeon.run.write_page = lambda report, out: []  # the page is drawn by the processor, whatever the device
    os.environ["SURGEON_CACHE"] = str(folder / "cache")
    shutil.rmtree(folder / "cache", ignore_errors=True)  # what an earlier try has left would not be timed
    report = surgeon.apply(recipe(folder, model, size, **more), device=device)
    scores: dict[str, Any] = {}
    for path in sorted((folder / "cache" / "scores").glob("*.safetensors")):
        with safe_open(path, "np") as file:
            language = file.metadata()["language"]
            scores |= {f"{language}/{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    regions = {path.name: surgeon.Region.load(path) for path in (folder / "out" / "regions").glob("*.safetensors")}
    figures = {
        f"{variant}/{language}": item.perplexity
        for variant, by_language in report.perplexity.items()
        for language, item in by_language.items()
    }
    return {"regions": regions, "scores": scores, "perplexity": figures, "seconds": report.timings}


def right(folder: Path, model: str, size: str, device: str) -> dict[str, float]:
    """Compare a device's results with the CPU's."""
    import numpy as np

    ours, theirs = (applied(folder / name, model, size, name.partition("-")[0]) for name in (f"{device}-1", "cpu-2"))
    both = sum((ours["regions"][name] & theirs["regions"][name]).entries for name in theirs["regions"])
    either = sum((ours["regions"][name] | theirs["regions"][name]).entries for name in theirs["regions"])
    of_scores = [
        float(np.abs(ours["scores"][name] - one).max() / max(float(one.max()), 1e-30))
        for name, one in theirs["scores"].items()
    ]
    of_figures = [abs(ours["perplexity"][name] / one - 1) for name, one in theirs["perplexity"].items() if one]
    return {
        "jaccard": both / max(either, 1), "score": max(of_scores, default=float("nan")), "perplexity": max(of_figures),
    }  # fmt: skip


def plain_pass(model: Path, size: str, device: str, dtype: str) -> float:
    """Return the tokens a second of transformers' own forward and backward pass over batches of random tokens."""
    import torch
    import transformers

    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=kind).to(device).eval()
    samples, length = SAMPLE[size]
    rows = min(4, samples)
    ids = torch.randint(0, loaded.config.vocab_size, (rows, length), device=device)

    def once() -> None:
        loaded(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        loaded.zero_grad()

    return rows * length / timed(once, device)


def timed(once: Callable[[], None], device: str) -> float:
    """Return the shortest of three times, in seconds, after one that is not counted."""
    import torch

    times = []
    for _ in range(4):
        started = time.perf_counter()
        once()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def planned_memory(path: Path, device: str) -> int:
    """Return what the plan says that a recipe takes of the device's memory."""
    import surgeon
    from surgeon.plan.device import device_needs

    return device_needs(surgeon.plan_recipe(path), device).memory


def shares(folder: Path, model: str, device: str) -> dict[str, float] | str:
    """Return which part of a run's scoring the device spends in arithmetic, in copies, and in neither."""
    if not device.startswith("cuda"):
        return TAKES_A_GPU
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        seconds = applied(folder, model, "tiny", device)["seconds"]
    spent = {"arithmetic": 0.0, "copies": 0.0}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent["copies" if event.name.startswith(("Memcpy", "Memset")) else "arithmetic"] += event.device_time / 1e6
    whole = seconds["score"] + seconds["verify"]
    found = {name: taken / whole for name, taken in spent.items()}
    return {**found, "waiting": max(1 - sum(found.values()), 0.0)}


def one_rank(folder: Path, model: str, device: str) -> str:
    """Carry a recipe out under torchrun with one rank, which sums through nccl."""
    if not device.startswith("cuda"):
        return TAKES_A_GPU
    path = recipe(folder, model, "tiny")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "surgeon"]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "SURGEON_CACHE": str(folder / "cache")}
    done = subprocess.run([*command, "apply", str(path), "--device", device], env=here, capture_output=True, text=True)
    return "done" if done.returncode == 0 else f"failed: {done.stderr.strip()[-500:]}"


def mixture(folder: Path, device: str) -> dict[str, Any] | str:
    """Time the core of a large mixture, in bfloat16."""
    if not device.startswith("cuda"):
        return TAKES_A_GPU
    model = random_model("qwen3_moe", MIXTURE, folder / "model", device)
    samples, length = SAMPLE["full"]
    seconds = applied(folder / "run", str(model), "full", device, dtype="native")["seconds"]
    return {"seconds": seconds, "tokens": 2 * samples * length / seconds["score"]}


def fast(folder: Path, size: str, device: str) -> dict[str, Any]:
    """Time a large model, in float32 and in bfloat16, beside a plain pass; and eight variants beside one."""
    import torch

    model = random_model("llama", LARGE[size], folder / "model", device)
    samples, length = SAMPLE[size]
    found: dict[str, Any] = {}
    for dtype in ("float32", "native"):
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        seconds = applied(folder / dtype, str(model), size, device, dtype=dtype)["seconds"]
        found[dtype] = {"seconds": seconds, "tokens": 2 * samples * length / seconds["score"]}
        if device.startswith("cuda"):
            found[dtype]["memory"] = torch.cuda.max_memory_allocated()
            found[dtype]["planned"] = planned_memory(folder / dtype / "recipe.yaml", device)
            torch.cuda.empty_cache()
        found[dtype]["plain"] = plain_pass(model, size, device, dtype)
    many = applied(folder / "many", str(model), size, device, variants=8)["seconds"]["verify"]
    alone = found["float32"]["seconds"]["verify"] / 2  # of the base and one variant
    found["eight variants beside eight evaluations"] = many / (9 * alone)
    return found


def table(found: dict[str, Any]) -> str:
    lines = ["| model | Jaccard | scores differ | perplexities differ |", "|---|---|---|---|"]
    for name, one in found["right"].items():
        lines.append(f"| {name} | {one['jaccard']:.6f} | {one['score']:.1e} | {one['perplexity']:.1e} |")
    lines += ["", "| arithmetic | scoring | of a plain pass's speed | highest memory |", "|---|---|---|---|"]
    for dtype in ("float32", "native"):
        one = found["fast"][dtype]
        memory = "a GPU's alone is told"
        if "memory" in one:
            memory = f"{one['memory'] / 1e9:.1f} GB; {one['planned'] / 1e9:.1f} GB planned"
        lines.append(f"| {dtype} | {one['tokens']:.0f} tokens/s | {one['tokens'] / one['plain']:.2f} | {memory} |")
    share = found["fast"]["eight variants beside eight evaluations"]
    lines += ["", f"Eight variants in one pass take {share:.2f} of as many evaluations.", ""]
    for name in ("shares", "nccl", "mixture"):
        lines.append(f"{name}: {found[name]}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("work", type=Path)
    add("--device", default="cuda")
    add("--size", choices=tuple(LARGE), default="full")
    add("--families", nargs="*", default=list(FAMILIES))
    add("--mixture", action="store_true", help="time a mixture of 30 billion parameters, too; 61 GB on disk")
    options = parser.parse_args()
    absent = missing()
    if absent:
        raise SystemExit(f"not installed: {', '.join(absent)}; pip install -e . in the checkout")
    import torch
    import transformers

    sys.path.insert(0, str(Path(__file__).parent.parent))
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --device cpu --size tiny tries the script itself")
    work = options.work.absolute()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device,
        "torch": torch.__version__, "transformers": transformers.__version__, "size": options.size,
    }  # fmt: skip
    found["right"] = {"builtin:tiny30": right(work / "builtin", "builtin:tiny30", "tiny", options.device)}
    for family in options.families:
        model = random_model(family, SMALL, work / family / "model", "cpu")
        found["right"][family] = right(work / family, str(model), "tiny", options.device)
    found["fast"] = fast(work / "large", options.size, options.device)
    found["shares"] = shares(work / "shares", "builtin:tiny30", options.device)
    found["nccl"] = one_rank(work / "nccl", "builtin:tiny30", options.device)
    found["mixture"] = mixture(work / "mixture", options.device) if options.mixture else "not asked for"
    (work / "gpu.json").write_text(json.dumps(found, indent=1))
    (work / "gpu.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
