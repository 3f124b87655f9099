"""Run a plan's scores. Those on text pass through the model layer by layer, all languages together.

Where the scores of all languages are small beside the free disk they are kept, so that another recipe on the same
scores needs no model; where they are not, or the disk is short, a layer's regions are selected as soon as its scores
are complete, and only the masks stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import identity, publish_sealed
from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.storage import TensorInfo
from surgeon.checkpoint.store import cache_folder
from surgeon.errors import EnvironmentFailure, InputError
from surgeon.inside import flush
from surgeon.model.precision import Precision, resolve_precision
from surgeon.model.token_counts import TokenCounts
from surgeon.model.tokenizer import load_tokenizer
from surgeon.model.workplace import Workplace
from surgeon.plan.estimates import keeps_scores, scores_in_one_go
from surgeon.plan.plan import Plan
from surgeon.progress import Progress
from surgeon.regions.base import RegionPlan, Stream
from surgeon.regions.cut import on_host
from surgeon.regions.kept import load_region
from surgeon.regions.make import Scored
from surgeon.regions.streams import stream_of
from surgeon.scores.base import SampledScore, WeightScore
from surgeon.scores.cache import ScoreFile, allocate_score, load_score, score_path, writable
from surgeon.text.windows import beginning, predicted, scoring_lengths, scoring_sequences, tokenize

if TYPE_CHECKING:
    from surgeon.model.layer_stack import Stack
    from surgeon.scores.score_pass import ScorePass


@dataclass(frozen=True)
class SampleSize:
    """Sequences and predicted tokens that one language was scored on."""

    sequences: int
    tokens: int


@dataclass(frozen=True)
class ScoreSet(Scored):
    """A score of the recipe, what came of it, and the size of each language's sample."""

    samples: Mapping[str, SampleSize] = field(default_factory=dict)


@dataclass(frozen=True)
class Scoring:
    """What a run hands to the functions here; `keep` insists on keeping scores, whatever their size."""

    plan: Plan
    load: Callable[[Precision], Stack]
    token_counts: TokenCounts
    place: Workplace
    progress: Progress
    keep: bool = False


def run_scores(run: Scoring) -> list[ScoreSet]:
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
            result.append(_from_weights(run, cast(WeightScore, score)))
    return result


def _from_weights(run: Scoring, score: WeightScore) -> ScoreSet:
    """Return a score that is computed when it is cut; its keys tell the models that it compares with apart."""
    keys = {name: identity(Checkpoint.open(name), run.place.jobs) for name in score.compared_with.values()}
    return ScoreSet(score, keys, lambda plans: stream_of({"": score.reader(run.plan.checkpoint)}, plans))


def _on_text(run: Scoring, score: SampledScore) -> ScoreSet:
    plan, languages = run.plan, score.labels
    tensors, precision = plan.scored_tensors(score), resolve_precision(score.dtype)

    def path_of(language: str) -> Path:
        text = plan.corpus.text(language).score_hash
        return score_path(plan.checkpoint, tensors, text, score, precision, run.place.jobs, run.place.device)

    paths = {language: path_of(language) for language in languages}
    keys = {language: path.stem for language, path in paths.items()}
    samples = {language: _sample_size(run, score, language) for language in languages}
    known = {language for language, path in paths.items() if load_score(path, language) is not None}
    if len(known) == len(paths):
        return ScoreSet(score, keys, _stream_of_files(paths), samples=samples)
    plans = {name: region for name, region in plan.regions.items() if region.score == score}
    kept = run.keep or keeps_scores(plan, score)
    source = plan.provenance(run.place.jobs)
    cached = {name: load_region(source, region, keys) for name, region in plans.items()}
    if not kept and all(region is not None for region in cached.values()):
        regions = {name: region for name, region in cached.items() if region is not None}
        return ScoreSet(score, keys, regions=regions, samples=samples)
    missing = _with_texts_of_their_own([name for name in languages if name not in known], paths) if kept else languages
    from surgeon.model.vocabulary import check_ids
    from surgeon.scoring.select import cut_of, select_in_pass
    from surgeon.scoring.shared import SharedScorePass  # torch is imported where it is needed

    key = sha256("".join(sorted(keys[language] for language in missing)).encode())[:32]
    sequences, begun = _sequences(plan, score, missing, load_tokenizer(plan.checkpoint))
    cut = None if kept else cut_of(plan.checkpoint, plans, list(sequences))
    folder, goes_on = str(plan.checkpoint.folder), cut is None or not cut.spans_layers
    stack = run.load(precision)
    in_one_go = stack.loaded.weights.stays and bool(stack.layers) and scores_in_one_go(plan, score, run.place.device)
    shared = SharedScorePass(folder, sequences, begun, tensors, score, precision, key, goes_on, in_one_go)
    check_ids(stack.loaded.model, stack.loaded.tokenizer, (ids for found in sequences.values() for ids in found))
    run.place.team.begin(shared)
    score_pass = shared.over(stack, run.progress, run.place.team)
    if cut is None:
        _keep(score_pass, key, {language: paths[language] for language in missing}, tensors)
        return ScoreSet(score, keys, _stream_of_files(paths), samples=samples)
    return ScoreSet(score, keys, regions=select_in_pass(score_pass, cut, key), samples=samples)


def _stream_of_files(paths: Mapping[str, Path]) -> Callable[[Sequence[RegionPlan]], Stream]:
    readers = {language: ScoreFile(path, language).reader() for language, path in paths.items()}
    return lambda plans: stream_of(readers, plans)


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
        made = {language: scratch.folder / path.name for language, path in paths.items()}
        start = score_pass.start(scratch)
        for language, path in made.items() if start.left is None else ():
            allocate_score(path, tensors, language)
        arrays = {language: writable(path) for language, path in made.items()}

        def flush_all() -> None:
            for path in made.values():
                flush(path)

        for _, language, scores in score_pass.run(scratch, start, flush_all):
            for name, values in scores.items():
                arrays[language][name][...] = on_host(values)
        flush_all()
        for language, path in made.items():
            publish_sealed(path, paths[language])
