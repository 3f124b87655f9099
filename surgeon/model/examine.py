"""A verification: models, one after the other, are measured per language and continue the prompts of the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from surgeon.model.continuations import Continuation, Prompt, continue_prompts, encode_prompts
from surgeon.model.model import LoadedModel
from surgeon.model.perplexity import EvaluationText, Measure, evaluation_texts, measure_languages
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.text.corpora import Corpus


@dataclass(frozen=True)
class Tasks:
    """What each model has to do; tokenized once, since variants share their base's tokenizer."""

    texts: Mapping[str, EvaluationText]
    prompts: Sequence[Prompt]
    spec: VerifySpec


@dataclass(frozen=True)
class Verification:
    """What was found, by model: `measures` per language, and `continuations` of the prompts, if there are any."""

    measures: dict[str, dict[str, Measure]] = field(default_factory=dict)
    continuations: dict[str, list[Continuation]] = field(default_factory=dict)

    def examine(self, name: str, loaded: LoadedModel, tasks: Tasks, progress: Progress) -> None:
        """Add what a model, as it is now, makes of the tasks."""
        self.measures[name] = measure_languages(loaded, tasks.texts, tasks.spec.batch_size, name, progress)
        if tasks.prompts:
            with progress.task(f"continuations by {name}", len(tasks.prompts)) as advance:
                self.continuations[name] = continue_prompts(loaded, tasks.prompts, tasks.spec.new_tokens, advance)


def make_tasks(loaded: LoadedModel, corpus: Corpus, languages: Sequence[str], spec: VerifySpec) -> Tasks:
    """Tokenize the evaluation half of each language, and the prompts.

    Raises:
        InputError: a text or prompt gives no token, or a prompt is too long.
    """
    texts = evaluation_texts(loaded, corpus, languages, spec)
    return Tasks(texts, encode_prompts(loaded, spec.prompts, spec.new_tokens), spec)
