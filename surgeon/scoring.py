"""Run a plan's scores, language by language, each kept as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from surgeon.model import LoadedModel, resolve_precision
from surgeon.plan import Plan
from surgeon.progress import Progress
from surgeon.recipe import ScoreSpec
from surgeon.scores.cache import ScoreFile, ScoreSettings, compute_score, load_score, score_path

ModelLoader = Callable[[str], LoadedModel]  # from precision to the model in that precision


@dataclass(frozen=True)
class ScoreSet:
    """The scores of one `score:` of the recipe, a file per language in the recipe's order."""

    spec: ScoreSpec
    files: Mapping[str, ScoreFile]
    computed: tuple[str, ...]


def run_scores(plan: Plan, load: ModelLoader, device: str, jobs: int, progress: Progress) -> list[ScoreSet]:
    """Compute, or find in the cache, every score the plan needs.

    Raises:
        InputError: a language's text is missing or too short, or the model is broken.
    """
    tensors = plan.scored_tensors()
    result = []
    for spec in plan.scores():
        precision = resolve_precision(spec.dtype, device)
        settings = ScoreSettings(spec.samples, spec.sequence_length, spec.batch_size, spec.reduction, precision)
        languages = list(dict.fromkeys(spec.languages))
        texts = {language: plan.corpus.text(language) for language in languages}
        paths = {
            language: score_path(plan.checkpoint, tensors, text.score_hash, settings, jobs)
            for language, text in texts.items()
        }
        files: dict[str, ScoreFile] = {}
        computed = []
        for language in languages:
            known = load_score(paths[language], language)
            if known is None:
                with progress.task(f"score {language}", spec.samples) as advance:
                    known = compute_score(
                        paths[language], load(precision), tensors, language, texts[language].score, settings, advance
                    )
                computed.append(language)
            files[language] = known
        result.append(ScoreSet(spec, files, tuple(computed)))
    return result
