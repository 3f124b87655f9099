"""What a model says: greedy continuations of given prompts, so that one sees and not only measures what was cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from surgeon.errors import InputError
from surgeon.model.model import LoadedModel
from surgeon.text.windows import bos_token, tokenize

Stopped = Literal["length", "end", "nan"]


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and its token ids: with BOS in front where perplexity is measured with it."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Continuation:
    """A prompt and the text that a model puts after it, in `tokens` tokens.

    `stopped` says why it ends there: after the `length` asked for, at an `end` token of the model's, or because the
    model's output was `nan`.
    """

    prompt: str
    continuation: str
    tokens: int
    stopped: Stopped


def encode_prompts(loaded: LoadedModel, prompts: Sequence[str], new_tokens: int) -> list[Prompt]:
    """Tokenize prompts that are to be continued by `new_tokens` tokens.

    Raises:
        InputError: a prompt gives no token, or the model has not so many positions.
    """
    bos = bos_token(loaded.tokenizer)
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    result = []
    for prompt in prompts:
        ids = (() if bos is None else (bos,)) + tokenize(loaded.tokenizer, prompt).ids
        if not ids:
            raise InputError(f"the prompt {prompt!r} gives no token to continue from")
        if positions is not None and len(ids) + new_tokens > positions:
            raise InputError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens, which with {new_tokens} new ones is more than the "
                f"model's {positions} positions: shorten it, or ask for fewer new tokens"
            )
        result.append(Prompt(prompt, ids))
    return result


def continue_prompts(
    loaded: LoadedModel, prompts: Sequence[Prompt], new_tokens: int, advance: Callable[[int], None] = lambda count: None
) -> list[Continuation]:
    """Continue each prompt by at most `new_tokens` tokens, always with the likeliest one (the lowest id on a tie).

    A plain loop and not transformers' `generate`, which would heed the checkpoint's own settings of sampling,
    penalties and lengths.
    """
    ends = _end_tokens(loaded)
    result = []
    for prompt in prompts:
        added, stopped = _greedy(loaded, prompt.ids, new_tokens, ends)
        text = _added_text(loaded.tokenizer, prompt.ids, added)
        result.append(Continuation(prompt.text, text, len(added), stopped))
        advance(1)
    return result


def _greedy(
    loaded: LoadedModel, ids: Sequence[int], new_tokens: int, ends: frozenset[int]
) -> tuple[list[int], Stopped]:
    import torch

    added: list[int] = []
    step, cache = [*ids], None
    with torch.inference_mode():
        while len(added) < new_tokens:
            inputs = torch.tensor([step], device=loaded.device)
            output = loaded.model(input_ids=inputs, past_key_values=cache, use_cache=True)
            logits, cache = output.logits[0, -1], output.past_key_values
            if bool(logits.isnan().any()):
                return added, "nan"
            step = [int(torch.nonzero(logits == logits.max())[0])]
            if step[0] in ends:
                return added, "end"
            added += step
    return added, "length"


def _end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """Ids after which there is nothing more to say, as the model's config and the tokenizer name them."""
    settings = getattr(loaded.model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    found = [loaded.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return frozenset(token for token in found if token is not None)


def _added_text(tokenizer: Any, ids: Sequence[int], added: Sequence[int]) -> str:
    """Decode what was added together with what stood before it, since a token's text may depend on that."""
    before, whole = tokenizer.decode([*ids]), tokenizer.decode([*ids, *added])
    return str(whole[len(before) :] if whole.startswith(before) else tokenizer.decode([*added]))
