"""A verification: the base and its variants are measured per language and continue the prompts of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from surgeon.measure.base import Measurement, Pieces, Subject
from surgeon.measure.measuring import Look, measure
from surgeon.measure.perplexity import as_measures, evaluation_texts, window_pieces
from surgeon.model.arithmetic import Precision
from surgeon.model.continuations import continue_prompts, cost, encode_prompts
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import Stack
from surgeon.model.results import CONTINUATIONS, PERPLEXITY, Verification
from surgeon.model.tokenizer import check_ids
from surgeon.model.workplace import Workplace
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.team import ALONE, Team
from surgeon.text.corpora import Corpus

BASE = "base"


@dataclass(frozen=True)
class Measuring:
    """A measurement of which every process of a team takes some of the batches."""

    model: str
    precision: Precision
    variants: Sequence[Variant]
    looks: Sequence[Look]

    def help(self, place: Workplace) -> None:
        """Measure this process's batches."""
        stack = place.stack(self.model, self.precision)
        measure(stack, self.variants, self.looks, Progress(), place.team)


def verify(
    stack: Stack,
    variants: Sequence[Variant],
    corpus: Corpus,
    languages: Sequence[str],
    spec: VerifySpec,
    progress: Progress,
    missing: Mapping[str, Collection[str]] | None = None,
    measured: Callable[[Verification], None] = lambda found: None,
    team: Team = ALONE,
) -> Verification:
    """Measure variants and let them continue the prompts, unless that would cost more than all the rest.

    Args:
        stack: the model.
        variants: what is measured; a measurement that compares needs the base, without operations, as the first.
        corpus: the texts.
        languages: which of them.
        spec: what is measured, and how.
        progress: is told how far it is.
        missing: by variant the kinds of measurement, and `continuations`, that are to be made; all if not given.
        measured: told the figures as soon as they are there, before anything is continued.
        team: who takes part in measuring.

    Raises:
        InputError: a text or prompt gives no token, or one without an embedding, or a prompt is too long.
        CheckpointError: a variant edits a tensor that is no parameter of the model.
    """
    loaded, names = stack.loaded, [variant.name for variant in variants]
    texts = evaluation_texts(loaded.tokenizer, corpus, languages, spec)
    windows = window_pieces(texts, spec.batch_size)
    subject = Subject(loaded.tokenizer, loaded.model.config, corpus, languages, spec.window, spec.batch_size, windows)
    looks = [
        Look(item, item.pieces(subject), frozenset(models))
        for item in spec.measurements
        if (models := _models_of(item, names, missing))
    ]
    prompts = encode_prompts(stack, spec.prompts, spec.new_tokens)
    talkers = [variant for variant in variants if missing is None or CONTINUATIONS in missing.get(variant.name, ())]
    looked_at = {id(pieces): pieces for pieces in (windows, *(look.pieces for look in looks))}
    check_ids(loaded.model, loaded.tokenizer, [*_ids(looked_at.values()), *(one.ids for one in prompts)])
    if looks:
        team.begin(Measuring(str(loaded.checkpoint.folder), loaded.precision, variants, looks))
    figures = measure(stack, variants, looks, progress, team) if looks else {}
    sizes = {language: text.bytes for language, text in texts.items()}
    measures = {
        name: as_measures(by_kind.pop(PERPLEXITY), sizes) for name, by_kind in figures.items() if PERPLEXITY in by_kind
    }
    measured(Verification(measures, figures=figures))
    if not prompts or not talkers:
        return Verification(measures, figures=figures)
    tokens = sum(piece.tokens for piece in windows.pieces) * len(talkers)
    if not loaded.weights.stays and cost(stack, prompts, len(talkers), spec.new_tokens) > tokens:
        progress.note(
            f"no continuations: {spec.new_tokens} tokens after {len(prompts)} prompts would read the weights "
            f"{spec.new_tokens} times, which costs more than everything else; ask for fewer (verify.new_tokens)"
        )
        return Verification(measures, figures=figures)
    return Verification(measures, continue_prompts(stack, talkers, prompts, spec.new_tokens, progress), figures)


def _models_of(item: Measurement, names: Sequence[str], missing: Mapping[str, Collection[str]] | None) -> list[str]:
    """Return the models that are measured so: of one that compares, all but the base, if the base is there."""
    models = [name for name in names if missing is None or item.kind in missing.get(name, ())]
    if not item.compares:
        return models
    return [name for name in models if name != BASE] if names[:1] == [BASE] else []


def _ids(looked_at: Iterable[Pieces]) -> list[list[int]]:
    """Return the token ids that are looked at, in and out."""
    batches = [batch for pieces in looked_at for batch in pieces.batches]
    return [ids.flatten().tolist() for batch in batches for ids in (batch.inputs, batch.labels.clamp_min(0))]
