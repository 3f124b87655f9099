"""A verification: the base and its variants are measured per language and continue the prompts of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from surgeon.model.continuations import continue_prompts, cost, encode_prompts
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import Stack
from surgeon.model.perplexity import EvaluationText, evaluation_texts, measure_variants
from surgeon.model.precision import Precision
from surgeon.model.results import Continuation, Verification
from surgeon.model.vocabulary import check_ids
from surgeon.model.workplace import Workplace
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.team import ALONE, Team
from surgeon.text.corpora import Corpus


@dataclass(frozen=True)
class Measuring:
    """A measurement of which every process of a team takes some of the windows."""

    model: str
    precision: Precision
    variants: Sequence[Variant]
    texts: Mapping[str, EvaluationText]
    batch_size: int

    def help(self, place: Workplace) -> None:
        """Measure this process's windows."""
        stack = place.stack(self.model, self.precision)
        measure_variants(stack, self.variants, self.texts, self.batch_size, Progress(), place.team)


def verify(
    stack: Stack,
    variants: Sequence[Variant],
    corpus: Corpus,
    languages: Sequence[str],
    spec: VerifySpec,
    progress: Progress,
    talkers: Collection[str] | None = None,
    measured: Callable[[Verification], None] = lambda found: None,
    team: Team = ALONE,
) -> Verification:
    """Measure variants and let them continue the prompts, unless that would cost more than all the rest.

    Args:
        stack: the model.
        variants: what is measured of it.
        corpus: where the texts come from.
        languages: codes of the languages to measure.
        spec: how.
        progress: where progress goes.
        talkers: names of the variants that continue the prompts; all if None.
        measured: told the perplexities as soon as they are there, before anything is continued.

    Raises:
        InputError: a text or prompt gives no token, or one without an embedding, or a prompt is too long.
        CheckpointError: a variant edits a tensor that is no parameter of the model.
    """
    texts = evaluation_texts(stack.loaded.tokenizer, corpus, languages, spec)
    prompts = encode_prompts(stack, spec.prompts, spec.new_tokens)
    cut = [[*window.inputs, *window.labels] for text in texts.values() for window in text.windows]
    check_ids(stack.loaded.model, stack.loaded.tokenizer, [*cut, *(prompt.ids for prompt in prompts)])
    loaded = stack.loaded
    team.begin(Measuring(str(loaded.checkpoint.folder), loaded.precision, variants, texts, spec.batch_size))
    measures = measure_variants(stack, variants, texts, spec.batch_size, progress, team)
    measured(Verification(measures))
    continuations: dict[str, list[Continuation]] = {}
    talking = [variant for variant in variants if talkers is None or variant.name in talkers]
    if prompts and talking:
        tokens = sum(len(window.labels) for text in texts.values() for window in text.windows) * len(variants)
        if not stack.loaded.weights.stays and cost(stack, prompts, len(talking), spec.new_tokens) > tokens:
            progress.note(
                f"no continuations: {spec.new_tokens} tokens after {len(prompts)} prompts would read the weights "
                f"{spec.new_tokens} times, which costs more than all the rest; ask for fewer (verify.new_tokens)"
            )
        else:
            continuations = continue_prompts(stack, talking, prompts, spec.new_tokens, progress)
    return Verification(measures, continuations)
