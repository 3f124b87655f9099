"""How long a plan will take on this machine: arithmetic counted from headers, over a speed that is tried out.

An estimate, meant to tell a minute from an hour: the speed is that of a product of matrices of the model's own widths,
of which models reach a part. What an earlier run left in the cache is not looked for, so that a run may be shorter.
"""

from __future__ import annotations

from collections.abc import Callable

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.config import of_text
from surgeon.plan.device import device_needs
from surgeon.plan.estimates import Shape, edited_entries, model_stays, scores_in_one_go, shape_of
from surgeon.plan.plan import Plan
from surgeon.plan.speed import Speed, tried_speed
from surgeon.plan.texts import BYTES_PER_TOKEN
from surgeon.progress import Step
from surgeon.recipe.schema import VerifySpec
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


def steps(plan: Plan, device: str = "cpu", speed: Callable[[Shape, str], Speed] = tried_speed) -> list[Step]:
    """Return what a run will do, in order, with the seconds that each step may take.

    Args:
        plan: what is to be done.
        device: where the model runs.
        speed: that of the device, by the model's shape; tried out if not given.
    """
    result: list[Step] = []
    shape = shape_of(plan.checkpoint)
    tried = speed(shape, device) if plan.runs_model else Speed(1.0)
    rate = _REACHED * tried.operations
    active = active_entries(plan.checkpoint)
    head = shape.hidden * shape.vocabulary
    for score in plan.sampled_scores():
        back = _IN_ONE_GO if scores_in_one_go(plan, score, device) else _BOTH_WAYS
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
            edits, stays = edited_entries(plan), model_stays(shape, device)
            result.append(
                Step("continuations", _continuations(verify, len(plan.talkers), shape, active, rate, edits, stays))
            )
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


def _continuations(
    verify: VerifySpec, models: int, shape: Shape, active: float, rate: float, edits: int, stays: bool
) -> float:
    """What is in memory as a whole goes on from what it has computed; else each token takes the whole text again,
    reads the weights, and does the edits of all variants.

    The head is asked for the last token alone. A model that ends its text early takes less.
    """
    given = sum(len(prompt.encode()) // BYTES_PER_TOKEN for prompt in verify.prompts)
    added = verify.new_tokens * len(verify.prompts)
    tokens = given + added if stays else verify.new_tokens * (given + added // 2)
    calls = (added if stays else verify.new_tokens) * (shape.layers + 1)
    operations = _FORWARD * (tokens * active + added * shape.hidden * shape.vocabulary)
    swept = 0.0 if stays else verify.new_tokens * (shape.total * _PER_READ + edits * _PER_EDIT)
    return models * (operations / rate + calls * _PER_CALL) + swept


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
