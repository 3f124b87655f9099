"""A verification: the base and its variants are measured per language and continue the prompts of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from surgeon.measure.base import Measurement, Pieces, Subject
from surgeon.measure.measuring import Look, measure
from surgeon.measure.perplexity import as_measures
from surgeon.measure.windows import evaluation_texts, window_pieces
from surgeon.model.arithmetic import Precision
from surgeon.model.continuations import continue_prompts, cost, encode_prompts
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import Stack
from surgeon.model.results import Continuation, Verification
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
    loaded = stack.loaded
    texts = evaluation_texts(loaded.tokenizer, corpus, languages, spec)
    windows = window_pieces(texts, spec.batch_size)
    subject = Subject(loaded.tokenizer, loaded.model.config, corpus, languages, spec.window, spec.batch_size, windows)
    looks = [
        Look(item, item.pieces(subject), frozenset(models))
        for item in spec.measurements
        if (models := _models_of(item, variants, missing))
    ]
    prompts = encode_prompts(stack, spec.prompts, spec.new_tokens)
    asked = [variant for variant in variants if missing is None or "continuations" in missing.get(variant.name, ())]
    looked_at = {id(pieces): pieces for pieces in (windows, *(look.pieces for look in looks))}
    check_ids(loaded.model, loaded.tokenizer, [*_ids(looked_at.values()), *(one.ids for one in prompts)])
    if looks:
        team.begin(Measuring(str(loaded.checkpoint.folder), loaded.precision, variants, looks))
    found = measure(stack, variants, looks, progress, team) if looks else {}
    sizes = {language: text.bytes for language, text in texts.items()}
    measures = {
        name: as_measures(by_kind["perplexity"], sizes) for name, by_kind in found.items() if "perplexity" in by_kind
    }
    figures = {
        name: {kind: item for kind, item in by_kind.items() if kind != "perplexity"} for name, by_kind in found.items()
    }
    measured(Verification(measures, figures=figures))
    continuations: dict[str, list[Continuation]] = {}
    if prompts and asked:
        tokens = sum(piece.tokens for piece in windows.pieces) * len(asked)
        if not loaded.weights.stays and cost(stack, prompts, len(asked), spec.new_tokens) > tokens:
            progress.note(
                f"no continuations: {spec.new_tokens} tokens after {len(prompts)} prompts would read the weights "
                f"{spec.new_tokens} times, which costs more than everything else; ask for fewer (verify.new_tokens)"
            )
        else:
            continuations = continue_prompts(stack, asked, prompts, spec.new_tokens, progress)
    return Verification(measures, continuations, figures)


def _models_of(
    item: Measurement, variants: Sequence[Variant], missing: Mapping[str, Collection[str]] | None
) -> list[str]:
    """Return the variants that are measured so: of one that compares, all but the base, if the base is there."""
    names = [variant.name for variant in variants if missing is None or item.kind in missing.get(variant.name, ())]
    if not item.compares:
        return names
    return [name for name in names if name != BASE] if variants and variants[0].name == BASE else []


def _ids(looked_at: Iterable[Pieces]) -> list[list[int]]:
    """Return the token ids that are looked at, in and out."""
    found = []
    for pieces in looked_at:
        for batch in pieces.batches:
            found += [batch.inputs.flatten().tolist(), batch.labels.clamp_min(0).flatten().tolist()]
    return found
