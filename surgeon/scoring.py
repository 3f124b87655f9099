"""Run a plan's scores. Those on text pass through the model layer by layer, all languages together.

Where the scores of all languages are small beside the free disk they are kept, so that another recipe on the same
scores needs no model: one safetensors file per language, float32, named by all that it was computed from, with its
SHA-256 beside it. Where they are not, or the disk is short, a layer's regions are selected as soon as its scores are
complete, and only the masks stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import (
    Fingerprint,
    content_hash,
    identity,
    is_sealed,
    library_versions,
    publish_sealed,
    tokenizer_hashes,
)
from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.storage import TensorInfo, allocate_file, map_bytes, read_header, view
from surgeon.checkpoint.store import cache_folder, path_of
from surgeon.errors import EnvironmentFailure, InputError
from surgeon.inside import flush
from surgeon.model.arithmetic import Precision, resolve_precision
from surgeon.model.tokenizer import TokenCounts, check_ids, load_tokenizer
from surgeon.model.workplace import Workplace
from surgeon.plan.needs import Running, keeps_scores
from surgeon.plan.plan import Plan
from surgeon.progress import Progress
from surgeon.region.region import Region
from surgeon.region.select import on_host
from surgeon.regions.base import SUM, RegionPlan
from surgeon.regions.cut import Cut
from surgeon.regions.make import SampleSize, Scored, load_region
from surgeon.scores.base import Reader, SampledScore, WeightScore
from surgeon.text.windows import beginning, predicted, scoring_lengths, scoring_sequences, tokenize

if TYPE_CHECKING:
    from surgeon.model.layer_stack import Stack
    from surgeon.scores.score_pass import ScorePass

SCORE_VERSION = 4  # raise it when the same settings would give other scores
_FORMAT_VERSION = "3"  # of score files


@dataclass(frozen=True)
class Scoring:
    """What a run hands to the functions here; `keep` insists on keeping scores, whatever their size."""

    plan: Plan
    load: Callable[[Precision], Stack]
    token_counts: TokenCounts
    place: Workplace
    progress: Progress
    keep: bool = False


def run_scores(run: Scoring) -> list[Scored]:
    """Compute, or find in the cache, every score the plan needs.

    Raises:
        InputError: a language's text is missing or too short, or the model is broken.
        EnvironmentFailure: scores that are to be kept do not fit the disk.
    """
    result = []
    for score in run.plan.scores():
        if score.on_text is not None:
            result.append(_on_text(run, score.on_text))
        else:
            # It is computed when it is cut; its keys tell the models that it compares with apart.
            keys = {name: identity(Checkpoint.open(name), run.place.jobs) for name in score.compared_with.values()}
            result.append(Scored(score, keys, {SUM: _when_asked(cast(WeightScore, score), run.plan.checkpoint)}))
    return result


def _when_asked(score: WeightScore, checkpoint: Checkpoint) -> Reader:
    """Return a score's reader, made when a tensor is first asked for: where all regions are kept, none is."""
    reader = cache(partial(score.reader, checkpoint))
    return lambda name: reader()(name)


def _on_text(run: Scoring, score: SampledScore) -> Scored:
    plan, languages = run.plan, score.labels
    tensors, precision = plan.scored_tensors(score), resolve_precision(score.dtype)

    def file_of(language: str) -> Path:
        text = plan.corpus.text(language).score_hash
        return score_path(plan.checkpoint, tensors, text, score, run.place)

    paths = {language: file_of(language) for language in languages}
    keys = {language: path.stem for language, path in paths.items()}
    samples = {language: _sample_size(run, score, language) for language in languages}
    missing = [language for language, path in paths.items() if not is_sealed(path)]
    if not missing:
        return Scored(score, keys, _readers(paths), samples=samples)
    plans = {name: region for name, region in plan.regions.items() if region.score == score}
    kept = run.keep or keeps_scores(plan, score)
    source = plan.provenance(run.place.jobs)
    cached = {name: load_region(source, region, keys) for name, region in plans.items()}
    if not kept and all(region is not None for region in cached.values()):
        regions = {name: region for name, region in cached.items() if region is not None}
        return Scored(score, keys, regions=regions, samples=samples)
    missing = _with_texts_of_their_own(missing, paths) if kept else languages
    from surgeon.scores.score_pass import SharedScorePass  # torch is imported where it is needed

    key = sha256("".join(sorted(keys[language] for language in missing)).encode())[:32]
    sequences, begun = _sequences(plan, score, missing, load_tokenizer(plan.checkpoint))
    cut = None if kept else cut_of(plan.checkpoint, plans, list(sequences))
    folder, goes_on = str(plan.checkpoint.folder), cut is None or not cut.spans_layers
    stack = run.load(precision)
    fits = Running(plan, run.place.device).scores_in_one_go(score)
    in_one_go = stack.loaded.weights.stays and bool(stack.layers) and fits
    shared = SharedScorePass(folder, sequences, begun, tensors, score, precision, key, goes_on, in_one_go)
    check_ids(stack.loaded.model, stack.loaded.tokenizer, (ids for texts in sequences.values() for ids in texts))
    run.place.team.begin(shared)
    score_pass = shared.over(stack, run.progress, run.place.team)
    if cut is None:
        _keep(score_pass, key, {language: paths[language] for language in missing}, tensors)
        return Scored(score, keys, _readers(paths), samples=samples)
    return Scored(score, keys, regions=select_in_pass(score_pass, cut, key), samples=samples)


def _readers(paths: Mapping[str, Path]) -> dict[str, Reader]:
    return {language: score_arrays(path).__getitem__ for language, path in paths.items()}


def _sample_size(run: Scoring, spec: SampledScore, language: str) -> SampleSize:
    tokens, begun = run.token_counts.count(run.plan.corpus.text(language).score), run.token_counts.begun()
    lengths = scoring_lengths(tokens, begun, spec.samples, spec.sequence_length)
    counts = [count for count in (predicted(length, begun) for length in lengths) if count]
    if not counts:
        raise InputError(f"the text for '{language}' is too short to score on: it has no token to predict")
    return SampleSize(len(counts), sum(counts))


def _sequences(
    plan: Plan, spec: SampledScore, languages: Sequence[str], tokenizer: object
) -> tuple[dict[str, list[tuple[int, ...]]], int]:
    """Cut the texts; also returns how many special tokens each sequence begins with."""
    begin = beginning(tokenizer)
    result = {}
    for language in languages:
        tokens = tokenize(tokenizer, plan.corpus.text(language).score)
        cut = scoring_sequences(tokens, begin, spec.samples, spec.sequence_length)
        result[language] = [ids for ids in cut if predicted(len(ids), len(begin))]
    return result, len(begin)


def _with_texts_of_their_own(languages: Sequence[str], paths: Mapping[str, Path]) -> list[str]:
    """Leave out languages whose scores are those of one before them, since their texts are the same."""
    return [name for i, name in enumerate(languages) if paths[name] not in [paths[other] for other in languages[:i]]]


def _keep(score_pass: ScorePass, key: str, paths: Mapping[str, Path], tensors: Sequence[TensorInfo]) -> None:
    """Write the languages' scores into the cache as the pass makes them; they get names when all are complete."""
    size, folder = sum(info.numel for info in tensors) * 4 * len(paths), cache_folder() / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise EnvironmentFailure(
            f"{folder}: the scores of {len(paths)} languages take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            "free; make room, or set SURGEON_CACHE to a folder elsewhere (`surgeon apply` does without them)"
        )
    with score_pass.scratch(key) as scratch:
        files = {language: scratch.folder / path.name for language, path in paths.items()}
        start = score_pass.start(scratch)
        for language, path in files.items() if start.left is None else ():
            allocate_score(path, tensors, language)
        arrays = {language: score_arrays(path, writable=True) for language, path in files.items()}

        def flush_all() -> None:
            for path in files.values():
                flush(path)

        for _, language, scores in score_pass.run(scratch, start, flush_all):
            for name, values in scores.items():
                arrays[language][name][...] = on_host(values)
        flush_all()
        for language, path in files.items():
            publish_sealed(path, paths[language])


def cut_of(checkpoint: Checkpoint, plans: Mapping[str, RegionPlan], languages: list[str]) -> Cut:
    """Return what makes regions from a stream of scores: those that select by them, and what is drawn like these."""
    drawings = [plan.kind.drawing(checkpoint, plan, plans) for plan in plans.values()]
    selected = [plan for plan in plans.values() if plan.select is not None]
    return Cut(selected, languages, [drawing for drawing in drawings if drawing is not None])


def select_in_pass(score_pass: ScorePass, cut: Cut, key: str) -> dict[str, Region]:
    """Compute the scores and keep only the regions that are selected, or drawn, by them.

    A pass that was killed goes on: what had been made in a layer lies beside its hidden states. A cut that spans layers
    holds its candidates in memory only, so that such a pass begins anew.
    """
    from surgeon.scores.passes import Progressed

    shapes = score_pass.shapes
    with score_pass.scratch(key) as scratch:

        def path(layer: int, name: str) -> Path:
            return scratch.folder / f"{layer}-{name}.region.safetensors"

        start = Progressed() if cut.spans_layers else score_pass.start(scratch)
        for layer in shapes:
            for name in cut.names if start.left is not None and layer >= start.left else ():
                region = Region.load(path(layer, name))
                cut.masks[name].update({tensor: region[tensor] for tensor in region})
        for layer in cut.take(score_pass.run(scratch, start)):
            for name in cut.names if scratch.resumes else ():
                masks = cut.masks[name]
                of_layer = {tensor: shape for tensor, shape in shapes[layer].items() if tensor in masks}
                Region(of_layer, masks.__getitem__).save(path(layer, name))
    return cut.finish()


def score_path(
    checkpoint: Checkpoint,
    tensors: Sequence[TensorInfo],
    text_hash: str,
    score: SampledScore,
    workplace: Workplace,
) -> Path:
    """Name the file of a language's scores by the fingerprint of all that goes into it."""
    fingerprint = Fingerprint(
        version=SCORE_VERSION,
        model=content_hash(checkpoint, workplace.jobs),
        config=checkpoint.config,
        tokenizer=tokenizer_hashes(checkpoint.folder),
        text=text_hash,
        settings={**score.settings, "precision": resolve_precision(score.dtype)},
        tensors=tuple(info.name for info in tensors),
        device=workplace.device.partition(":")[0],
        libraries=library_versions(),
    )
    return path_of("scores", fingerprint.key(), ".safetensors")


def allocate_score(path: Path, tensors: Sequence[TensorInfo], language: str) -> None:
    """Make a score file of zeros, its blocks reserved; `score_arrays` maps it."""
    metadata = {"format": "surgeon-score", "format_version": _FORMAT_VERSION, "language": language}
    allocate_file(path, [(info.name, "F32", info.shape) for info in tensors], metadata)


def score_arrays(path: Path, writable: bool = False) -> Mapping[str, NDArray[np.float32]]:
    """Map a score file: float32, non-negative, by the tensors' names; if `writable`, what is written reaches it."""
    header, data = read_header(path), map_bytes(path, "shared") if writable else map_bytes(path)
    return {name: view(data, info) for name, info in header.tensors.items()}
