"""Run a plan's scores: those on text language by language, each kept as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from surgeon.model.model import LoadedModel, resolve_precision
from surgeon.plan.plan import Plan
from surgeon.progress import Progress
from surgeon.recipe.schema import GradParamScore, RandomScore, ScoreSpec, WandaScore
from surgeon.region.select import Scores
from surgeon.scores.cache import ScoreFile, ScoreSettings, compute_score, load_score, score_path
from surgeon.scores.magnitude import magnitude
from surgeon.scores.random import random_scores

ModelLoader = Callable[[str], LoadedModel]  # from precision to the model in that precision


@dataclass(frozen=True)
class ScoreSet:
    """The scores of one `score:` of the recipe.

    `readers` give a tensor's scores by its name, for each language in the recipe's order; a score that reads no
    text has one reader, under the empty name, and computes when asked. `files` are those of scores on text.
    """

    spec: ScoreSpec
    readers: Mapping[str, Scores]
    files: Mapping[str, ScoreFile]


def run_scores(plan: Plan, load: ModelLoader, device: str, jobs: int, progress: Progress) -> list[ScoreSet]:
    """Compute, or find in the cache, every score the plan needs.

    Raises:
        InputError: a language's text is missing or too short, or the model is broken.
    """
    result = []
    for spec in plan.scores():
        if isinstance(spec, GradParamScore | WandaScore):
            files = _score_languages(plan, spec, load, device, jobs, progress)
            result.append(ScoreSet(spec, {language: file.reader() for language, file in files.items()}, files))
        else:
            result.append(ScoreSet(spec, {"": _from_weights(plan, spec)}, {}))
    return result


def _from_weights(plan: Plan, spec: ScoreSpec) -> Scores:
    """Return the reader of a score that needs neither text nor a running model."""
    checkpoint = plan.checkpoint
    if isinstance(spec, RandomScore):
        return lambda name: random_scores(name, checkpoint.info(name).shape, spec.seed)
    return lambda name: magnitude(checkpoint.array(name))


def _score_languages(
    plan: Plan, spec: GradParamScore | WandaScore, load: ModelLoader, device: str, jobs: int, progress: Progress
) -> dict[str, ScoreFile]:
    tensors = plan.scored_tensors(spec)
    precision = resolve_precision(spec.dtype, device)
    reduction = spec.reduction if isinstance(spec, GradParamScore) else None
    settings = ScoreSettings(spec.samples, spec.sequence_length, spec.batch_size, reduction, precision)
    languages = list(dict.fromkeys(spec.languages))
    texts = {language: plan.corpus.text(language) for language in languages}
    paths = {
        language: score_path(plan.checkpoint, tensors, text.score_hash, settings, jobs, device)
        for language, text in texts.items()
    }
    files: dict[str, ScoreFile] = {}
    for language in languages:
        known = load_score(paths[language], language)
        if known is None:
            with progress.task(f"score {language}", spec.samples) as advance:
                known = compute_score(
                    paths[language], load(precision), tensors, language, texts[language].score, settings, advance
                )
        files[language] = known
    return files
