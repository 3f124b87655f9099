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
from typing import TYPE_CHECKING

from surgeon import ranks
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import identity
from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.sealed import publish_sealed
from surgeon.checkpoint.sources import cache_folder
from surgeon.checkpoint.storage import TensorInfo, flush
from surgeon.errors import EnvironmentFailure, InputError
from surgeon.model.precision import resolve_precision
from surgeon.model.token_counts import TokenCounts
from surgeon.model.tokenizer import load_tokenizer
from surgeon.plan.estimates import keeps, score_bytes
from surgeon.plan.plan import Plan
from surgeon.progress import Progress
from surgeon.recipe.score_specs import (
    ActivationScore,
    DeltaScore,
    GradParamScore,
    RandomScore,
    SampledScore,
    ScoreSpec,
    WandaScore,
)
from surgeon.region.region import Region
from surgeon.region.select import Scores
from surgeon.scores.cache import (
    ScoreFile,
    allocate_score,
    load_score,
    score_path,
    writable,
)
from surgeon.scores.controls import is_drawn_within, ranked_controls
from surgeon.scores.delta import delta
from surgeon.scores.magnitude import magnitude
from surgeon.scores.random import random_scores
from surgeon.scores.region_cache import load_region
from surgeon.scores.settings import ScoreSettings
from surgeon.text.windows import beginning, predicted, scoring_lengths, scoring_sequences, tokenize

if TYPE_CHECKING:
    from surgeon.model.stack import Stack
    from surgeon.scores.sweeps import Sweep

StackLoader = Callable[[str], "Stack"]  # from precision to the model in that precision


@dataclass(frozen=True)
class SampleSize:
    """Sequences and predicted tokens that one language was scored on."""

    sequences: int
    tokens: int


@dataclass(frozen=True)
class ScoreSet:
    """The scores of one `score:` of the recipe.

    `readers` give a tensor's scores by its name, for each language in the recipe's order; a score that reads no
    text has one reader, under the empty name, and computes when asked. Where scores on text were not kept there are
    no readers, and `regions` holds what was selected by them. `keys` name what each language's scores depend on.
    """

    spec: ScoreSpec
    readers: Mapping[str, Scores]
    keys: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, SampleSize] = field(default_factory=dict)
    regions: Mapping[str, Region] = field(default_factory=dict)


@dataclass(frozen=True)
class Scoring:
    """What a run hands to the functions here; `keep` insists on keeping scores, whatever their size."""

    plan: Plan
    load: StackLoader
    token_counts: TokenCounts
    device: str
    jobs: int
    progress: Progress
    keep: bool = False


def run_scores(run: Scoring) -> list[ScoreSet]:
    """Compute, or find in the cache, every score the plan needs.

    Raises:
        InputError: a language's text is missing or too short, or the model is broken.
        EnvironmentFailure: scores that are to be kept do not fit the disk.
    """
    result = []
    for spec in run.plan.scores():
        if isinstance(spec, GradParamScore | WandaScore | ActivationScore):
            result.append(_on_text(run, spec))
        else:
            result.append(ScoreSet(spec, {"": _from_weights(run.plan, spec)}, _others(spec, run.jobs)))
    return result


def _others(spec: ScoreSpec, jobs: int) -> dict[str, str]:
    """Return what tells the models that a score from weights compares with, so that none stands in for another."""
    names = [name for name in (spec.other, spec.merged) if name is not None] if isinstance(spec, DeltaScore) else []
    return {name: identity(Checkpoint.open(name), jobs) for name in names}


def _from_weights(plan: Plan, spec: ScoreSpec) -> Scores:
    """Return the reader of a score that needs neither text nor a running model."""
    checkpoint = plan.checkpoint
    if isinstance(spec, RandomScore):
        return lambda name: random_scores(name, checkpoint.info(name).shape, spec.seed)
    if isinstance(spec, DeltaScore):
        other = Checkpoint.open(spec.other)
        merged = Checkpoint.open(spec.merged) if spec.merged is not None else None
        return lambda name: delta(
            checkpoint.array(name), other.array(name), merged.array(name) if merged is not None else None
        )
    return lambda name: magnitude(checkpoint.array(name))


def _on_text(run: Scoring, spec: GradParamScore | WandaScore | ActivationScore) -> ScoreSet:
    plan = run.plan
    tensors = plan.scored_tensors(spec)
    settings = _settings(spec, run.device)
    languages = list(dict.fromkeys(spec.languages))
    paths = {
        language: score_path(
            plan.checkpoint, tensors, plan.corpus.text(language).score_hash, settings, run.jobs, run.device
        )
        for language in languages
    }
    keys = {language: path.stem for language, path in paths.items()}
    samples = {language: _sample_size(run, spec, language) for language in languages}
    files = {language: load_score(path, language) for language, path in paths.items()}
    known = {language: file for language, file in files.items() if file is not None}
    if len(known) == len(paths):
        return ScoreSet(spec, {language: known[language].reader() for language in languages}, keys, samples)
    controls = ranked_controls(plan, spec)
    regions = [region for region in plan.regions.values() if region.score == spec and region.select is not None]
    streams = all(is_drawn_within(plan, control) for control in controls)
    cached = {region.name: load_region(plan, region, keys, run.jobs) for region in (*regions, *controls)}
    selected = {name: region for name, region in cached.items() if region is not None}
    if streams and len(selected) == len(cached) and not run.keep:
        return ScoreSet(spec, {}, keys, samples, selected)
    kept = run.keep or not streams or keeps(score_bytes(tensors, spec))
    missing = _with_texts_of_their_own([name for name in languages if name not in known], paths) if kept else languages
    from surgeon.model.vocabulary import check_ids
    from surgeon.scores.shared import SharedSweep  # torch is imported where it is needed

    key = sha256("".join(sorted(keys[language] for language in missing)).encode())[:32]
    central = kept or any(region.select is not None and region.select.scope == "global" for region in regions)
    sequences, begun = _sequences(plan, spec, missing, load_tokenizer(plan.checkpoint))
    shared = SharedSweep(
        str(plan.checkpoint.folder),
        sequences,
        begun,
        tensors,
        settings,
        (0,) if central else tuple(range(ranks.world())),
        None if kept else (regions, controls),
        key,
    )
    stack = run.load(resolve_precision(spec.dtype, run.device))
    check_ids(stack.loaded.model, stack.loaded.tokenizer, (ids for found in sequences.values() for ids in found))
    ranks.share(shared)
    sweep = shared.sweep(stack, run.progress)
    if kept:
        _keep(sweep, key, {language: paths[language] for language in missing}, tensors)
        readers = {language: ScoreFile(path, language).reader() for language, path in paths.items()}
        return ScoreSet(spec, readers, keys, samples)
    return ScoreSet(spec, {}, keys, samples, shared.select(sweep))


def _settings(spec: GradParamScore | WandaScore | ActivationScore, device: str) -> ScoreSettings:
    return ScoreSettings(
        spec.samples,
        spec.sequence_length,
        spec.batch_size,
        spec.reduction if isinstance(spec, GradParamScore) else None,
        resolve_precision(spec.dtype, device),
        spec.power if isinstance(spec, WandaScore) else 1,
        spec.measure if isinstance(spec, ActivationScore) else None,
    )


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


def _keep(sweep: Sweep, key: str, paths: Mapping[str, Path], tensors: Sequence[TensorInfo]) -> None:
    """Write the languages' scores into the cache as the sweep makes them; they get names when all are complete."""
    size, folder = sum(info.numel for info in tensors) * 4 * len(paths), cache_folder() / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise EnvironmentFailure(
            f"{folder}: the scores of {len(paths)} languages take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            "free; make room, or set SURGEON_CACHE to a folder elsewhere (`surgeon apply` does without them)"
        )
    with sweep.scratch(key) as scratch:
        made, start = {language: scratch.folder / path.name for language, path in paths.items()}, sweep.start(scratch)
        for language, path in made.items() if start.left is None else ():
            allocate_score(path, tensors, language)
        arrays = {language: writable(path) for language, path in made.items()}

        def flush_all() -> None:
            for path in made.values():
                flush(path)

        for layer, language, scores in sweep.run(scratch, start, flush_all):
            for name, values in scores.items():
                arrays[language][name][...] = values
            if ranks.world() > 1 and scratch.resumes and language == list(paths)[-1]:
                flush_all()
                sweep.done(scratch, layer)
        flush_all()
        for language, path in made.items():
            publish_sealed(path, paths[language])
