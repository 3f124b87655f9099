"""How long a plan will take on this machine: arithmetic counted from headers, over a speed that is tried out.

An estimate, meant to tell a minute from an hour: the speed is that of a product of matrices of the model's own widths,
of which models reach a part. What an earlier run left in the cache is not looked for, so that a run may be shorter.
What an accelerator did when it was tried is kept; a processor's speed is what other work leaves of it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.config import of_text
from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.store import path_of, recall, remember
from surgeon.errors import present
from surgeon.plan.elsewhere import device_needs
from surgeon.plan.needs import Running, Shape, edited_entries, shape_of
from surgeon.plan.plan import Plan
from surgeon.plan.texts import BYTES_PER_TOKEN
from surgeon.progress import Step
from surgeon.scores.base import SampledScore
from surgeon.text.corpora import Corpus
from surgeon.text.unpacked import PACKED

_REACHED = 0.35  # of the speed of matrix products alone: norms, attention and copies take the rest of a pass
_FORWARD, _IN_ONE_GO, _BOTH_WAYS = 2, 6, 8  # operations a weight and token: layer by layer there is a second way there
_DISK = 3e8  # bytes a second, copied and hashed
_PAGE = 7.0  # seconds for the figures, none of which is kept from before
_PER_READ = 4e-9  # seconds an entry of the weights, read and widened
_PER_EDIT = 2e-7  # seconds an entry, edited and put back
_PER_CALL = 1e-3  # seconds that a layer takes however little it does
_TRIED, _LONGEST = 0.1, 1.2  # seconds: long enough for some dozen products, short enough for a plan
_TRIES = 20  # at least, unless these take longest
_ROWS = 64  # of the matrices: so few that some products come to their end before other work takes the processor
_ROWS_ON_DEVICE = 1024  # a batch's tokens: with few of them it would be the reading of the other matrix that is timed
_COPIED = 1 << 26  # bytes


@dataclass(frozen=True)
class Speed:
    """Floating-point `operations` a second, and bytes a second in `copies` from pinned memory to the device."""

    operations: float
    copies: float = math.inf


def tried_speed(shape: Shape, device: str) -> Speed:
    """Return the speed of products of float32 matrices of the model's widths, at best, and of copies."""
    wide, hidden = max(min(shape.wide, 8192), 64), max(min(shape.hidden, 4096), 64)
    if device == "cpu":
        # The time that the processors spent is counted: that of the clock says how busy the machine is just now.
        return Speed(2 * _ROWS * hidden * wide * _threads() / _least(_on_cpu(hidden, wide), time.process_time))
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    path = path_of("speeds", sha256(repr((name, torch.__version__, hidden, wide)).encode()), ".json")
    known = recall(path)
    if known is None:
        operations = 2 * _ROWS_ON_DEVICE * hidden * wide / _least(_on_device(hidden, wide, device), time.perf_counter)
        known = asdict(Speed(operations, _COPIED / _least(_copy_to(device), time.perf_counter)))
        remember(path, known)
    return Speed(float(known["operations"]), float(known["copies"]))


def _least(once: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the seconds that something takes where other work leaves it alone: the least of a moment.

    On a busy processor, threads that wait for one another spend most of the time: it takes a while until one of the
    tries is undisturbed.
    """
    once()
    taken: list[float] = []
    began = time.perf_counter()
    while (so_far := time.perf_counter() - began) < _TRIED or (len(taken) < _TRIES and so_far < _LONGEST):
        started = clock()
        once()
        taken.append(clock() - started)
    return max(min(taken), 1e-9)


def _threads() -> int:
    """Return how many threads products of matrices will use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told):
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_cpu(hidden: int, wide: int) -> Callable[[], object]:
    left, right = np.ones((_ROWS, hidden), np.float32), np.ones((hidden, wide), np.float32)
    out = np.empty((_ROWS, wide), np.float32)
    return lambda: np.matmul(left, right, out=out)


def _on_device(hidden: int, wide: int, device: str) -> Callable[[], object]:
    import torch

    left = torch.ones(_ROWS_ON_DEVICE, hidden, device=device)  # float32, as models are run unless told otherwise
    right = torch.ones(hidden, wide, device=device)
    return lambda: float((left @ right)[0, 0])  # which waits for the device


def _copy_to(device: str) -> Callable[[], object]:
    import torch

    source = torch.ones(_COPIED, dtype=torch.uint8, pin_memory=device.startswith("cuda"))
    return lambda: int(source.to(device)[0])


def steps(plan: Plan, device: str = "cpu", speed: Callable[[Shape, str], Speed] = tried_speed) -> list[Step]:
    """Return what a run will do, in order, with the seconds that each step may take.

    Args:
        plan: what is to be done.
        device: where the model runs.
        speed: that of the device, by the model's shape; tried out if not given.
    """
    result: list[Step] = []
    running = Running(plan, device)
    shape = running.shape
    tried = speed(shape, device) if plan.runs_model else Speed(1.0)
    rate = _REACHED * tried.operations
    active = active_entries(plan.checkpoint)
    head = shape.hidden * shape.vocabulary
    for score in plan.sampled_scores():
        back = _IN_ONE_GO if running.scores_in_one_go(score) else _BOTH_WAYS
        per_weight = back if score.backward else _FORWARD
        tokens = _scored_tokens(plan.corpus, score)
        result.append(Step("score ", per_weight * tokens * (active + head) / rate))
    for name, variant in plan.variants.items():
        if variant.write:
            result.append(Step(f"write {name}", variant.bytes_to_write / _DISK))
    verify = plan.recipe.verify
    if verify is not None:
        models = 1 + len(plan.variants)
        each = verify.tokens + sum(item.tokens() for item in verify.measurements)
        measured = len(plan.verify_languages) * (each * models + verify.tokens * parts_in_models(plan))
        result.append(Step("perplexity", _FORWARD * measured * (active + head) / rate))
        if verify.prompts:
            result.append(Step("continuations", _continuations(running, active, rate)))
    if device != "cpu" and plan.runs_model:
        needs, computing = device_needs(plan, device), sum(step.seconds for step in result if "write" not in step.label)
        behind = (needs.up + needs.down) / tried.copies - computing  # most copies are made while something is computed
        result += [Step("copies", behind)] if behind > 0 else []
    result.append(Step("page", _PAGE))
    return result


def parts_in_models(plan: Plan) -> float:
    """Return how many whole models cost as much as all parts of cuts that are measured by themselves.

    A part is run from the first layer on that it changes; a model that is no plain stack is run whole.
    """
    shape, places = shape_of(plan.checkpoint), anatomy_of(plan.checkpoint).places
    layers, head = max(shape.layers, 1), shape.hidden * shape.vocabulary
    share = head / max(active_entries(plan.checkpoint) + head, 1)
    total = 0.0
    for names in plan.parts():
        first = min((-1 if (layer := places[name].layer) is None else layer for name in names), default=0)
        only_head = all(places[name].role in ("head", "final_norm") for name in names)
        left = 1.0 if shape.whole else 0.0 if only_head else min(layers - first, layers) / layers
        total += share + (1 - share) * left
    return total


def _scored_tokens(corpus: Corpus, score: SampledScore) -> int:
    """Tokens of the sample; no more than the text of a file may give."""
    asked = score.samples * score.sequence_length
    return sum(min(asked, _supply(corpus, language, asked)) for language in dict.fromkeys(score.languages))


def _supply(corpus: Corpus, language: str, asked: int) -> int:
    where = corpus.locations.get(language)
    path = where.path if where is not None else None
    if path is None or not path.is_file() or path.suffix.lower() in PACKED:
        return asked
    halves = 1 if path.parent.name == "score" else 2
    return path.stat().st_size // (halves * BYTES_PER_TOKEN)


def _continuations(running: Running, active: int, rate: float) -> float:
    """What is in memory as a whole goes on from what it has computed; else each token takes the whole text again,
    reads the weights, and does the edits of all variants.

    The head is asked for the last token alone. A model that ends its text early takes less.
    """
    plan, shape, verify = running.plan, running.shape, present(running.plan.recipe.verify)
    given = sum(len(prompt.encode()) // BYTES_PER_TOKEN for prompt in verify.prompts)
    added = verify.new_tokens * len(verify.prompts)
    tokens = given + added if running.stays else verify.new_tokens * (given + added // 2)
    calls = (added if running.stays else verify.new_tokens) * (shape.layers + 1)
    operations = _FORWARD * (tokens * active + added * shape.hidden * shape.vocabulary)
    read = 0.0 if running.stays else shape.total * _PER_READ + edited_entries(plan) * _PER_EDIT
    return len(plan.talkers) * (operations / rate + calls * _PER_CALL) + verify.new_tokens * read


def active_entries(checkpoint: Checkpoint) -> int:
    """Return the entries of the decoder layers that one token is multiplied with: of experts, as many as are chosen."""
    config = of_text(checkpoint.config)
    experts = config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts")
    chosen = config.get("num_experts_per_tok")
    share = min(int(chosen) / int(experts), 1.0) if experts and chosen else 1.0
    total = 0.0
    places = anatomy_of(checkpoint).places
    for name, info in checkpoint.tensors.items():
        if places[name].in_decoder and len(info.shape) > 1:
            total += info.numel * (share if ".experts." in name else 1.0)
    return int(total)
