"""What a GPU does: is it right, how fast, how much memory; one command, and a table for docs/scale.md.

    python benchmarks/gpu.py WORK [--device cuda] [--size tiny|full] [--families llama qwen3 ...] [--minutes 8]

Needs the checkout, torch, transformers and what surgeon imports; packages that are missing are told first. Takes 20 GB
of disk and, at full size, a GPU with 80 GB or more; with less, some parts fail and say so.

Each part runs in a process of its own, until the minutes are up. What it found, or how it failed, is in WORK/gpu.json
and WORK/gpu.md as soon as it has ended; `--only PART` runs one. At tiny size all run in this process.

    right      scores, regions and perplexities of the builtin model and of small random models of six families, beside
               the CPU's: Jaccard of regions, the largest relative difference of a score and of a perplexity
    again      the builtin model twice on the device: the same bytes, or not
    little     the same with hardly any memory allowed, so that weights and hidden states come and go
    float32    `zero_core` on a random Llama made on the spot (8B at full size): seconds by step, tokens a second beside
               transformers' own forward and backward pass of such batches, memory beside what the plan said
    native     the same in bfloat16
    variants   eight variants verified in one pass, beside as many evaluations
    shares     of the time of scoring: in arithmetic, in copies beside it, and in neither
    nccl       two GPUs beside one: the same bytes, or not; with one GPU, whether nccl begins at all
    mixture    the core of a random mixture of 30 billion parameters, with `--mixture`: 61 GB of disk more

A CPU skips the last three, and memory, in words.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
NEEDED = (
    "torch", "transformers", "safetensors", "numpy", "pydantic", "yaml", "huggingface_hub", "jinja2", "ml_dtypes",
    "rich", "typer",
)  # fmt: skip
PACKAGES = {"yaml": "pyyaml", "ml_dtypes": "ml-dtypes", "huggingface_hub": "huggingface-hub"}
FAMILIES = ("llama", "qwen3", "gemma2", "gpt2", "mixtral", "granite")
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4, "n_embd": 64, "n_layer": 2, "n_head": 4,
         "max_position_embeddings": 512, "n_positions": 512}  # fmt: skip
LARGE = {"tiny": SMALL, "full": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                                 "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                                 "vocab_size": 128256}}  # fmt: skip
MIXTURE = {"hidden_size": 2048, "moe_intermediate_size": 768, "intermediate_size": 6144, "num_hidden_layers": 48,
           "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
           "num_experts_per_tok": 8, "vocab_size": 151936}  # fmt: skip
TAKES_A_GPU = "skipped: it takes a GPU"
SAMPLE = {"tiny": (2, 32, 32), "full": (64, 256, 4096)}  # sequences a language, their length, tokens to verify
RECIPE = """
version: 1
name: gpu
model: {model}
corpus: {{en: {texts}/en.txt, ar: {texts}/ar.txt}}
regions:
  core:
    score: {{kind: grad_param, languages: [ar, en], samples: {samples}, sequence_length: {length}, dtype: {dtype}}}
    select: {{top: 0.01}}
  lowest: {{from: core, select: {{bottom: 0.01}}}}
variants:
{variants}
verify: {{languages: [ar, en], tokens: {tokens}, window: {length}}}
output: {out}
"""
Found = dict[str, Any]


def missing() -> list[str]:
    """Return the packages that are not installed, as an installer names them."""
    return [PACKAGES.get(name, name) for name in NEEDED if importlib.util.find_spec(name) is None]


def make_texts(folder: Path) -> None:
    """Write two long texts, each of half of the builtin corpus's languages."""
    from surgeon.text.corpora import builtin_corpus

    corpus = builtin_corpus("udhr30")
    folder.mkdir(parents=True, exist_ok=True)
    for first, name in enumerate(("en", "ar")):
        texts = [corpus.text(code) for code in corpus.languages[first::2]]
        (folder / f"{name}.txt").write_text("\n".join(f"{one.score}\n{one.evaluate}" for one in texts), "utf-8")


def random_model(family: str, sizes: dict[str, int], folder: Path, device: str) -> Path:
    """Make a model with random weights in bfloat16, and the builtin model's tokenizer beside it."""
    import torch
    import transformers

    from surgeon.checkpoint.checkpoint import Checkpoint
    from surgeon.checkpoint.companions import is_tokenizers

    if (folder / "config.json").exists():  # written last
        return folder
    builtin = Checkpoint.open("builtin:tiny30")
    config = transformers.AutoConfig.for_model(family)
    for name, value in {"vocab_size": int(builtin.config["vocab_size"]), **sizes}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    config.layer_types = None if not hasattr(config, "layer_types") else config.layer_types[: config.num_hidden_layers]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, None)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    made = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    model.save_pretrained(made, max_shard_size="2GB")
    for path in builtin.folder.iterdir():
        if is_tokenizers(path.name):
            shutil.copy(path, made / path.name)
    made.rename(folder)
    return folder


def recipe(work: Path, name: str, model: str, size: str, dtype: str = "auto", variants: int = 1) -> Path:
    samples, length, tokens = SAMPLE[size]
    lines = [f"  cut{i}: {{operations: [{{zero: core}}], write: false}}" for i in range(variants)]
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    text = RECIPE.format(
        model=model, texts=work / "texts", samples=samples, length=length, tokens=tokens, dtype=dtype,
        variants="\n".join(lines), out=folder / "out",
    )  # fmt: skip
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return folder / "recipe.yaml"


def applied(path: Path, device: str, cache: Path | None = None) -> Found:
    """Carry a recipe out, with a cache of its own if none is given; returns what was found, and in which seconds."""
    import surgeon
    import surgeon.run

    shutil.rmtree(path.parent / "out", ignore_errors=True)
    surgeon.run.write_page = lambda report, out: []  # the page is drawn by the processor, whatever the device
    if cache is None:
        shutil.rmtree(path.parent / "cache", ignore_errors=True)  # what an earlier try has left would not be timed
    os.environ["SURGEON_CACHE"] = str(cache or path.parent / "cache")
    surgeon.apply(path, device=device)
    release()
    return earlier(path, device)


def earlier(path: Path, device: str) -> Found:
    """Return what a run of a recipe has found, which another part may have made."""
    from safetensors import safe_open

    if not (path.parent / "out" / "report.json").exists():
        return applied(path, device)
    report = json.loads((path.parent / "out" / "report.json").read_text())
    scores: dict[str, Any] = {}
    for file_path in sorted((path.parent / "cache" / "scores").glob("*.safetensors")):
        with safe_open(file_path, "np") as file:
            language = file.metadata()["language"]
            scores |= {f"{language}/{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    figures = {
        f"{variant}/{language}": item["perplexity"]
        for variant, by_language in report["perplexity"].items()
        for language, item in by_language.items()
    }
    folder, tokens = path.parent / "out" / "regions", sum(item["tokens"] for item in report["scores"])
    files = {one.name: one.read_bytes() for one in folder.glob("*.safetensors")}
    return {"scores": scores, "perplexity": figures, "seconds": report["timings"], "tokens": tokens,
            "folder": folder, "files": files}  # fmt: skip


def release() -> None:
    """Let go of what an earlier part has left on the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def compared(ours: Found, theirs: Found) -> dict[str, float]:
    """Compare the results of two runs of a recipe."""
    import numpy as np

    import surgeon

    both = either = 0
    for name in theirs["files"]:
        one, other = (surgeon.Region.load(found["folder"] / name) for found in (ours, theirs))
        both, either = both + (one & other).entries, either + (one | other).entries
    of_scores = [
        float(np.abs(ours["scores"][name] - one).max() / max(float(one.max()), 1e-30))
        for name, one in theirs["scores"].items()
    ]
    of_figures = [abs(ours["perplexity"][name] / one - 1) for name, one in theirs["perplexity"].items() if one]
    return {
        "jaccard": both / max(either, 1), "score": max(of_scores, default=float("nan")), "perplexity": max(of_figures),
    }  # fmt: skip


def right(work: Path, options: argparse.Namespace) -> Found:
    """Compare a device's results with the CPU's, model by model."""
    found = {}
    for name in ("builtin", *options.families):

        def one(name: str = name) -> dict[str, float]:
            model = "builtin:tiny30" if name == "builtin" else str(random_model(name, SMALL, work / name, "cpu"))
            ours, theirs = (
                applied(recipe(work, f"{name}-{turn}", model, "tiny"), device)
                for turn, device in (("there", options.device), ("cpu", "cpu"))
            )
            return compared(ours, theirs)

        found[name] = tried(one)
    return found


def on_device(work: Path, options: argparse.Namespace) -> Found:
    """Return what the builtin model gave on the device, in `right`."""
    return earlier(recipe(work, "builtin-there", "builtin:tiny30", "tiny"), options.device)


def again(work: Path, options: argparse.Namespace) -> str:
    """Say whether a second run on the device gives the same regions to the last byte."""
    one, other = on_device(work, options), applied(recipe(work, "again", "builtin:tiny30", "tiny"), options.device)
    return "the same bytes" if one["files"] == other["files"] else f"not the same: {compared(one, other)}"


def little(work: Path, options: argparse.Namespace) -> dict[str, float]:
    """Compare a run with all the memory with one that may hardly take any: nothing stays on the device."""
    all_of_it = on_device(work, options)
    variable = "SURGEON_MEMORY" if options.device == "cpu" else "SURGEON_DEVICE_MEMORY"
    os.environ[variable] = "1K"
    try:
        return compared(applied(recipe(work, "little", "builtin:tiny30", "tiny"), options.device), all_of_it)
    finally:
        del os.environ[variable]


def large_model(work: Path, options: argparse.Namespace) -> str:
    return str(random_model("llama", LARGE[options.size], work / "large", options.device))


def fast(work: Path, options: argparse.Namespace, dtype: str) -> Found:
    """Time a large model beside a plain pass, and hold its memory against the plan."""
    import torch

    import surgeon
    from surgeon.plan.elsewhere import device_needs

    device, on_gpu = options.device, options.device.startswith("cuda")
    path = recipe(work, dtype, large_model(work, options), options.size, dtype=dtype)
    release()
    found: Found = {}
    if on_gpu:
        found["planned"] = device_needs(surgeon.plan_recipe(path), device).memory
        torch.cuda.reset_peak_memory_stats()
    made = applied(path, device)
    found |= {"seconds": made["seconds"], "tokens": made["tokens"] / made["seconds"]["score"]}
    if on_gpu:
        found["memory"] = torch.cuda.max_memory_allocated()
    found["plain"] = tried(lambda: plain_pass(Path(large_model(work, options)), options, dtype))
    return found


def plain_pass(model: Path, options: argparse.Namespace, dtype: str) -> float:
    """Return the tokens a second of transformers' own forward and backward pass over batches of random tokens."""
    import torch
    import transformers

    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    stored = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    loaded = stored.to(options.device).to(kind).eval()  # widened there, which is faster
    samples, length, _ = SAMPLE[options.size]
    rows = min(4, samples)
    ids = torch.randint(0, loaded.config.vocab_size, (rows, length), device=options.device)

    def once() -> None:
        loaded(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        loaded.zero_grad()

    return rows * length / timed(once, options.device)


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


def variants(work: Path, options: argparse.Namespace) -> Found:
    """Verify eight variants in one pass, beside the base and one variant of `float32`, whose regions are taken."""
    model = large_model(work, options)
    one = earlier(recipe(work, "float32", model, options.size, "float32"), options.device)["seconds"]["verify"]
    shutil.rmtree(work / "float32" / "cache" / "measures", ignore_errors=True)
    eight = applied(
        recipe(work, "eight", model, options.size, "float32", 8), options.device, work / "float32" / "cache"
    )
    seconds = eight["seconds"]["verify"]
    return {"seconds": seconds, "of as many evaluations": seconds / (9 * one / 2)}


def shares(work: Path, options: argparse.Namespace) -> dict[str, float] | str:
    """Return which part of the time of scoring the device spends in arithmetic, in copies beside it, and in neither."""
    if not options.device.startswith("cuda"):
        return TAKES_A_GPU
    import torch
    from torch.profiler import ProfilerActivity, profile

    import surgeon

    path = recipe(work, "shares", large_model(work, options), options.size)
    shutil.rmtree(work / "shares" / "cache", ignore_errors=True)
    os.environ["SURGEON_CACHE"] = str(work / "shares" / "cache")
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        surgeon.score(path, overrides=["regions.core.score.samples=16"], device=options.device, overwrite=True)
        whole = time.perf_counter() - started
    spans: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            copies = event.name.startswith(("Memcpy", "Memset"))
            spans[copies].append((event.time_range.start / 1e6, event.time_range.end / 1e6))
    arithmetic, both = covered(spans[False]), covered([*spans[False], *spans[True]])
    return {"arithmetic": arithmetic / whole, "copies beside it": (both - arithmetic) / whole,
            "neither": 1 - both / whole, "seconds": whole}  # fmt: skip


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the seconds that lie in one of some spans, or in several."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total


BEGIN_NCCL = """
import torch, torch.distributed as dist
torch.cuda.set_device(0)
dist.init_process_group("cpu:gloo,cuda:nccl")
values = torch.ones(1 << 20, device="cuda")
dist.all_reduce(values)
dist.barrier()
torch.cuda.synchronize()
print("sum", float(values[0]))
dist.destroy_process_group()
"""


def nccl(work: Path, options: argparse.Namespace) -> str:
    """Compare two ranks with one process; with one GPU, begin nccl with one rank, which surgeon itself never does."""
    if not options.device.startswith("cuda"):
        return TAKES_A_GPU
    import torch

    path = recipe(work, "ranks", "builtin:tiny30", "tiny")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    here = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "SURGEON_CACHE": str(work / "ranks" / "cache")}
    if torch.cuda.device_count() < 2:
        (work / "begin_nccl.py").write_text(BEGIN_NCCL)
        run([*launcher, "1", str(work / "begin_nccl.py")], here)
        return "one GPU: nccl begins and sums; what passes between two ranks was not tried"
    run([*launcher, "2", "-m", "surgeon", "apply", str(path), "--device", "cuda", "--overwrite"], here)
    same = earlier(path, options.device)["files"] == on_device(work, options)["files"]
    return f"two ranks: {'the same bytes' if same else 'not the same bytes'}"


def run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-1500:])


def mixture(work: Path, options: argparse.Namespace) -> Found | str:
    """Time the core of a large mixture, in bfloat16."""
    if not options.device.startswith("cuda"):
        return TAKES_A_GPU
    if not options.mixture:
        return "not asked for"
    model = random_model("qwen3_moe", MIXTURE, work / "mixture-model", options.device)
    release()
    made = applied(recipe(work, "mixture", str(model), "full", dtype="native"), options.device)
    return {"seconds": made["seconds"], "tokens": made["tokens"] / made["seconds"]["score"]}


PARTS: dict[str, Callable[[Path, argparse.Namespace], Any]] = {
    "right": right, "again": again, "little": little,
    "float32": lambda work, options: fast(work, options, "float32"), "variants": variants,
    "native": lambda work, options: fast(work, options, "native"), "shares": shares, "nccl": nccl, "mixture": mixture,
}  # fmt: skip


def tried(do: Callable[[], Any]) -> Any:
    """Return what is found, or how it failed."""
    try:
        return do()
    except Exception as error:
        where = [f"{Path(at.filename).name}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)[-4:]]
        return {"failed": f"{type(error).__name__}: {error}"[:1000], "at": where}
    finally:
        release()


def in_process(name: str, options: argparse.Namespace, seconds: float) -> Any:
    """Run a part in a process of its own, which may crash or hang without harm to the others."""
    path = options.work / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, str(HERE), str(options.work), "--only", name, "--device", options.device]
    command += ["--size", options.size, *(["--mixture"] if options.mixture else []), "--families", *options.families]
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {seconds:.0f} s"}
    if not path.exists():
        return {"failed": f"ended with {done.returncode}: {done.stderr.strip()[-1000:]}"}
    return json.loads(path.read_text())


def table(found: Found) -> str:
    """Return what was found as Markdown; parts that failed, or did not run, in words."""
    lines = [f"{found['device']}, torch {found['torch']}, transformers {found['transformers']}, size {found['size']}"]
    lines += ["", "| model | Jaccard | scores differ | perplexities differ |", "|---|---|---|---|"]
    compared_ones = {**as_parts(found, "right"), "with little memory": found.get("little")}
    for name, one in compared_ones.items():
        told = (
            f"{one['jaccard']:.6f} | {one['score']:.1e} | {one['perplexity']:.1e}" if ran(one) else f"{said(one)} | |"
        )
        lines.append(f"| {name} | {told} |")
    lines += ["", "| arithmetic | scoring | of a plain pass's speed | highest memory |", "|---|---|---|---|"]
    for dtype in ("float32", "native"):
        one = found.get(dtype)
        if not ran(one):
            lines.append(f"| {dtype} | {said(one)} | | |")
            continue
        memory = "a GPU's alone is told"
        if "memory" in one:
            memory = f"{one['memory'] / 1e9:.1f} GB; {one['planned'] / 1e9:.1f} GB planned"
        share = f"{one['tokens'] / one['plain']:.2f}" if isinstance(one["plain"], float) else said(one["plain"])
        lines.append(f"| {dtype} | {one['tokens']:.0f} tokens/s | {share} | {memory} |")
    lines.append("")
    lines += [f"{name}: {said(found.get(name))}" for name in ("again", "variants", "shares", "nccl", "mixture")]
    lines.append(f"seconds: {found['seconds']}")
    return "\n".join(lines) + "\n"


def as_parts(found: Found, name: str) -> Found:
    part = found.get(name)
    return {name: part} if not isinstance(part, dict) or "failed" in part else part


def ran(part: Any) -> bool:
    return isinstance(part, dict) and "failed" not in part


def said(part: Any) -> str:
    if part is None:
        return "not run"
    if isinstance(part, dict):
        numbers = {name: round(one, 3) if isinstance(one, float) else one for name, one in part.items()}
        return ", ".join(f"{name} {' '.join(str(one).split())[:300]}" for name, one in numbers.items())
    return str(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("work", type=Path)
    add("--device", default="cuda")
    add("--size", choices=tuple(LARGE), default="full")
    add("--families", nargs="*", default=list(FAMILIES))
    add("--minutes", type=float, default=8.0, help="begin no part, and end the one under way, when they are up")
    add("--mixture", action="store_true", help="time a mixture of 30 billion parameters, too; 61 GB on disk")
    add("--only", choices=tuple(PARTS), help="run one part, here, and write WORK/PART.json")
    options = parser.parse_args()
    options.work = options.work.absolute()
    absent = missing()
    if absent:
        raise SystemExit(f"not installed: {' '.join(absent)}\npip install {' '.join(absent)}")
    import torch
    import transformers

    sys.path.insert(0, str(HERE.parent.parent))
    on_gpu = options.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --device cpu --size tiny tries the script itself")
    make_texts(options.work / "texts")
    if options.only:
        part = tried(lambda: PARTS[options.only](options.work, options))
        (options.work / f"{options.only}.json").write_text(json.dumps(part, indent=1))
        print(json.dumps(part, indent=1))
        return
    found: Found = {
        "device": torch.cuda.get_device_name() if on_gpu else options.device,
        "torch": torch.__version__, "transformers": transformers.__version__, "size": options.size, "seconds": {},
    }  # fmt: skip
    began = time.monotonic()
    for name, do in PARTS.items():
        left, started = 60 * options.minutes - (time.monotonic() - began), time.monotonic()
        if left <= 0:
            found[name] = {"failed": "not begun: the minutes were up"}
        elif options.size == "tiny":
            found[name] = tried(lambda do=do: do(options.work, options))  # type: ignore[misc]
        else:
            found[name] = in_process(name, options, left)
        found["seconds"][name] = round(time.monotonic() - started, 1)
        print(f"{name}: {found['seconds'][name]} s", flush=True)
        (options.work / "gpu.json").write_text(json.dumps(found, indent=1))
        (options.work / "gpu.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
