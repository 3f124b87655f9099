"""Models as the harness sees them: one that notes what it is asked, one that hands answers back, one that speaks.

All are the harness's own model for transformers, of which only the arithmetic is taken out, so that texts become
tokens, and long ones are cut, exactly as they do there.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from surgeon.errors import InputError, reason
from surgeon.foreign import load_generation_config
from surgeon.harness.running import quiet

if TYPE_CHECKING:
    from surgeon.model.editing import Variant
    from surgeon.model.layer_stack import Stack
    from surgeon.progress import Progress

Question = tuple[tuple[int, ...], tuple[int, ...]]  # ids that the model reads, and those that the last outputs predict
Answer = tuple[float, bool]  # log-likelihood in nats, and whether each token was the likeliest one
Speech = tuple[str, str]  # a text to continue, and the settings of it, as JSON


@dataclass
class Questions:
    """What tasks ask, each question once, in their order: likelihoods, and texts to continue."""

    likelihoods: dict[Question, None] = field(default_factory=dict)
    speeches: dict[Speech, None] = field(default_factory=dict)


def recorder(tokenizer: Any, config: Any, questions: Questions) -> Any:
    """Return a model that notes every question, and gives an answer that means nothing."""

    def note(asked: Sequence[Question]) -> list[Answer]:
        questions.likelihoods.update(dict.fromkeys(asked))
        return [(0.0, False)] * len(asked)

    def hear(asked: Sequence[Speech]) -> list[str]:
        questions.speeches.update(dict.fromkeys(asked))
        return [""] * len(asked)

    return asked_model()(tokenizer, config, note, hear)


def replayer(tokenizer: Any, config: Any, answers: Mapping[Question, Answer], said: Mapping[Speech, str]) -> Any:
    """Return a model that gives the answers that were found; a question that was not asked before is a KeyError."""
    return asked_model()(
        tokenizer, config, lambda asked: [answers[one] for one in asked], lambda asked: [said[one] for one in asked]
    )


class _Hidden:
    """A model that the harness takes for none of torch's, so that it does not tie its weights anew."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@cache
def asked_model() -> Any:
    """Return the class of models whose answers come from two functions, of questions and of texts to continue."""
    import torch
    from lm_eval.models.huggingface import HFLM

    class Asked(HFLM):  # type: ignore[misc, unused-ignore]
        """The harness's model for transformers, with somebody else's answers."""

        def __init__(
            self,
            tokenizer: Any,
            config: Any,
            likelihoods: Callable[[Sequence[Question]], list[Answer]],
            speeches: Callable[[Sequence[Speech]], list[str]],
        ) -> None:
            self._likelihoods, self._speeches = likelihoods, speeches
            stand_in = SimpleNamespace(config=config, device=torch.device("cpu"))  # for a model that is never run
            super().__init__(pretrained=stand_in, backend="causal", tokenizer=copy.deepcopy(tokenizer))

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, **settings: Any) -> Any:
            return self._likelihoods([_question(context, end, self.max_length) for _, context, end in requests])

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return self._speeches([speech(*request.args) for request in requests])

    return Asked


def _question(context: Sequence[int], end: Sequence[int], longest: int) -> Question:
    """Cut what is too long from the left, as the harness does.

    Raises:
        InputError: there is nothing to predict, or nothing to predict it from, or the end alone is too long.
    """
    if not context or not end or len(end) > longest:
        what = "an empty text" if not context or not end else f"a text of {len(end)} tokens, where {longest} fit"
        raise InputError(f"a task asks for {what}")
    return tuple([*context, *end][-(longest + 1) :][:-1]), tuple(end)


def speech(text: str, settings: Mapping[str, Any]) -> Speech:
    """Return a text to continue and its settings, such that both can be looked up."""
    return text, json.dumps(settings, sort_keys=True, default=str)


def speak(
    stack: Stack, variants: Sequence[Variant], speeches: Sequence[Speech], progress: Progress
) -> dict[str, dict[Speech, str]]:
    """Have each model continue texts, as the harness has transformers do it, by variant and by what it was asked.

    The model must stay in memory.

    Raises:
        InputError: a text and what is to follow are longer than the model has positions.
    """
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from surgeon.model.editing import edited

    requests = [Instance("generate_until", {}, (text, json.loads(settings)), 0) for text, settings in speeches]

    loaded, texts = stack.loaded, {}
    if (loaded.checkpoint.folder / "generation_config.json").is_file():  # as `from_pretrained` does
        loaded.model.generation_config = load_generation_config(loaded.checkpoint.folder)
    with (
        torch.inference_mode(),
        loaded.weights.resident(list(loaded.model.parameters())),
        progress.task("answers of tasks", len(variants)) as advance,
    ):
        for variant in variants:
            with edited(loaded, variant, variant.touched(loaded)), quiet():
                model = HFLM(_Hidden(loaded.model), backend="causal", tokenizer=copy.deepcopy(loaded.tokenizer))
                try:
                    said = model.generate_until(requests, disable_tqdm=True)
                except AssertionError as error:
                    raise InputError(f"a task's texts do not fit the model: {reason(error)}") from None
            texts[variant.name] = dict(zip(speeches, said, strict=True))
            advance(1)
    return texts
