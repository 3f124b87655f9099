"""What a model says: greedy continuations of given prompts, so that one sees and not only measures what was cut.

Where the whole model is in memory, each variant is made once and goes on token by token, its keys and values kept. Else
all prompts of all variants advance together, a token per pass through the layers, each from the whole text so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from surgeon.errors import InputError
from surgeon.model.device import with_less_at_a_time
from surgeon.model.editing import Variant, edited, prepared
from surgeon.model.layer_stack import Stack
from surgeon.model.model import LoadedModel
from surgeon.model.results import Continuation, Stopped
from surgeon.model.variant_pass import run_models
from surgeon.progress import Progress
from surgeon.text.windows import beginning, tokenize

_READING = 64  # tokens that a model could be run on in the time that reading its weights once takes


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and its token ids: begun as the windows are that perplexity is measured in."""

    text: str
    ids: tuple[int, ...]


def encode_prompts(stack: Stack, prompts: Sequence[str], new_tokens: int) -> list[Prompt]:
    """Tokenize prompts that are to be continued by `new_tokens` tokens.

    Raises:
        InputError: a prompt gives no token, or the model has not so many positions.
    """
    tokenizer = stack.loaded.tokenizer
    begin = beginning(tokenizer)
    return [fitting_prompt(stack, text, begin + tokenize(tokenizer, text).ids, new_tokens) for text in prompts]


def fitting_prompt(stack: Stack, text: str, ids: tuple[int, ...], new_tokens: int) -> Prompt:
    """Make a prompt of a text that became these token ids.

    Raises:
        InputError: there is no token, or the model has not so many positions.
    """
    positions = getattr(stack.loaded.model.config, "max_position_embeddings", None)
    if not ids:
        raise InputError(f"the prompt {text!r} gives no token to continue from")
    if positions is not None and len(ids) + new_tokens > positions:
        raise InputError(
            f"the prompt {text[:40]!r} has {len(ids)} tokens, which with {new_tokens} new ones is more than the "
            f"model's {positions} positions: shorten it, or ask for fewer new tokens"
        )
    return Prompt(text, ids)


def cost(stack: Stack, prompts: Sequence[Prompt], variants: int, new_tokens: int) -> int:
    """Return what continuations cost, in tokens that could be run through the model instead."""
    tokens = sum(len(prompt.ids) + new_tokens // 2 for prompt in prompts) * variants
    return new_tokens * (tokens + (0 if stack.loaded.weights.stays else _READING))


@dataclass
class _Text:
    """One prompt as one variant goes on with it."""

    prompt: Prompt
    added: list[int] = field(default_factory=list)
    stopped: Stopped = "length"
    done: bool = False

    def take(self, token: int | None, ends: frozenset[int]) -> None:
        """Go on with a token, or be done if it is none, or ends a text."""
        if token is None or token in ends:
            self.stopped, self.done = "nan" if token is None else "end", True
        else:
            self.added.append(token)


def continue_prompts(
    stack: Stack, variants: Sequence[Variant], prompts: Sequence[Prompt], new_tokens: int, progress: Progress
) -> dict[str, list[Continuation]]:
    """Continue each prompt by at most `new_tokens` tokens, always with the likeliest one (the lowest id on a tie).

    A plain loop and not transformers' `generate`, which would heed the checkpoint's own settings of sampling,
    penalties and lengths.
    """
    texts = [[_Text(prompt) for prompt in prompts] for _ in variants]
    loaded, ends = stack.loaded, _end_tokens(stack)
    at_once = 1 if loaded.weights.stays else len(prompts) * len(variants)
    with progress.task("continuations", new_tokens * len(prompts) * len(variants) // at_once) as advance:
        if loaded.weights.stays:
            with torch.inference_mode(), loaded.weights.resident(list(loaded.model.parameters())):
                for variant, of_variant in zip(variants, texts, strict=True):
                    with edited(loaded, variant, variant.touched(loaded)):
                        for text in of_variant:
                            _complete(loaded, text, ends, new_tokens, advance)
        else:
            edited_often, count = prepared(loaded, variants), 0

            def go_on(rows: int) -> None:
                nonlocal count
                while count < new_tokens:
                    if not all(text.done for of_variant in texts for text in of_variant):
                        _add_token(stack, edited_often, texts, ends, rows)
                    advance(1)
                    count += 1

            with_less_at_a_time(len(prompts), go_on, loaded.device, progress)
    return {
        variant.name: [_continuation(loaded.tokenizer, text) for text in of_variant]
        for variant, of_variant in zip(variants, texts, strict=True)
    }


def _complete(
    loaded: LoadedModel, text: _Text, ends: frozenset[int], new_tokens: int, advance: Callable[[int], None]
) -> None:
    """Go on with a text to its end, by the model's own forward and cache."""
    cache, ids = None, list(text.prompt.ids)
    for count in range(new_tokens):
        output = loaded.model(
            input_ids=torch.tensor([ids], device=loaded.device), past_key_values=cache, use_cache=True
        )
        cache = getattr(output, "past_key_values", None)
        text.take(_likeliest(output.logits[0, -1]), ends)
        advance(new_tokens - count if text.done else 1)
        if text.done:
            return
        # A family that keeps nothing is given the whole text again.
        ids = text.added[-1:] if cache is not None else [*text.prompt.ids, *text.added]


def _add_token(
    stack: Stack, variants: Sequence[Variant], texts: Sequence[Sequence[_Text]], ends: frozenset[int], rows: int
) -> None:
    """Add a token to every text that is not done: in batches of a variant's, at most `rows`, padded on the right."""
    going_on = [[text for text in of_variant if not text.done] for of_variant in texts]
    owned = [(i, of[at : at + rows]) for i, of in enumerate(going_on) for at in range(0, len(of), rows)]
    batches = []
    for _, of_batch in owned:
        ids = [[*text.prompt.ids, *text.added] for text in of_batch]
        width = max(map(len, ids))
        batches.append(torch.tensor([row + [0] * (width - len(row)) for row in ids]))

    def last(text: _Text) -> int:
        return len(text.prompt.ids) + len(text.added) - 1

    def wanted(batch: int, rows: slice, positions: slice) -> bool:
        return any(positions.start <= last(text) < positions.stop for text in owned[batch][1][rows])

    def take(variant: int, batch: int, rows: slice, positions: slice, logits: torch.Tensor) -> None:
        for text, row in zip(owned[batch][1][rows], logits, strict=True):
            if positions.start <= last(text) < positions.stop:
                chosen.append((text, _likeliest(row[last(text) - positions.start])))

    chosen: list[tuple[_Text, int | None]] = []
    run_models(stack, variants, batches, take, wanted=wanted, uses=lambda variant, batch: owned[batch][0] == variant)
    for text, token in chosen:
        text.take(token, ends)


def _likeliest(logits: torch.Tensor) -> int | None:
    """Return the id of the highest logit, the lowest on a tie; None if they are not numbers."""
    if bool(logits.isnan().any()):
        return None
    return int(torch.nonzero(logits == logits.max())[0])


def _end_tokens(stack: Stack) -> frozenset[int]:
    """Ids after which there is nothing more to say, as the model's config and the tokenizer name them."""
    settings = getattr(stack.loaded.model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    tokens = [stack.loaded.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return frozenset(token for token in tokens if token is not None)


def _continuation(tokenizer: Any, text: _Text) -> Continuation:
    """Decode what was added together with what stood before it, since a token's text may depend on that."""
    before, whole = tokenizer.decode([*text.prompt.ids]), tokenizer.decode([*text.prompt.ids, *text.added])
    added = str(whole[len(before) :] if whole.startswith(before) else tokenizer.decode([*text.added]))
    return Continuation(text.prompt.text, added, len(text.added), text.stopped)
