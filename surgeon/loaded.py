"""On a transformers model that is in memory already: cut a region for a while, and measure perplexity per language.

with surgeon.cut(model, region):
    after = surgeon.perplexity(model, tokenizer, languages=["ar", "en"])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from surgeon.checkpoint.ties import is_position_table
from surgeon.errors import InputError, RegionError, shorten
from surgeon.model.results import Measure
from surgeon.recipe.corpus import TextSpec, open_corpus
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region
from surgeon.text.corpora import Corpus, given_corpus

if TYPE_CHECKING:
    import torch

    from surgeon.anatomy.slots import Slot

# The cuts that are open, of whatever models, in the order in which they were made.
_OPEN: list[_Cut] = []


@dataclass(eq=False)
class _Cut:
    """Entries of a model's parameters, and while they are zero, what they held."""

    places: Sequence[tuple[Slot, torch.Tensor]]
    held: list[torch.Tensor] = field(default_factory=list)

    @property
    def parameters(self) -> frozenset[int]:
        """Which parameters it is made in."""
        return frozenset(id(parameter) for slot, _ in self.places for parameter in slot.parameters)

    def make(self) -> None:
        """Set the entries to zero; negative zeros stay what they are, as on disk."""
        for slot, at in self.places:
            values = slot.values()
            before = values[_index(values, at)]
            self.held.append(before)
            slot.set(at, before.where(before == 0, 0))

    def undo(self) -> None:
        """Put back what the entries held, bit for bit."""
        # The last first: several tensors of a region may be one tied parameter.
        for (slot, at), before in reversed(list(zip(self.places, self.held, strict=False))):
            slot.set(at, before)
        self.held = []


@contextmanager
def cut(model: Any, region: Region | str | Path) -> Iterator[Any]:
    """Set a region's entries to zero in a model in memory; when the block ends they are put back, bit for bit.

    The names of a region are those on disk; where the model names or fuses tensors differently, as transformers 5 does
    with experts, the places are found by transformers' own registry. Cuts may be nested, overlap, and end in any order;
    they end also when an exception ends the block. What else happens to the weights meanwhile stays. Memory: the
    region's indices and values.

    Args:
        model: a transformers model, or a module that wraps one.
        region: the region, or its file. Its tensors must all be the model's.

    Yields:
        The model.

    Raises:
        RegionError: a tensor of the region has no place in the model, or another shape there.
        InputError: the model is no transformers model, or its weights are not here (offloaded, sharded, quantized).
    """
    inner = _inner(model)
    one = _Cut(_places(inner, region if isinstance(region, Region) else Region.load(region)))
    _OPEN.append(one)
    try:
        one.make()
        yield model
    finally:
        later = _later(one)
        for other in reversed(later):  # they may hold zeros of this one's making
            other.undo()
        one.undo()
        _OPEN.remove(one)
        for other in later:
            other.make()
        _refuse_replaced(inner, one)


def _later(one: _Cut) -> list[_Cut]:
    """Return the cuts made after one that share parameters with it, or with each other by way of these."""
    shared, later = one.parameters, []
    for other in _OPEN[_OPEN.index(one) + 1 :]:
        if other.parameters & shared:
            shared = shared | other.parameters
            later.append(other)
    return later


def perplexity(
    model: Any,
    tokenizer: Any,
    *,
    corpus: Corpus | str | Mapping[str, str | Sequence[str] | TextSpec | Mapping[str, Any]] = "builtin:udhr30",
    languages: Sequence[str] | str = "all",
    tokens: int = 512,
    window: int = 256,
    stride: int | None = None,
    batch_size: int = 4,
) -> dict[str, Measure]:
    """Measure a model in memory per language, as `surgeon verify` does (docs/method.md), in its own arithmetic.

    Args:
        model: a transformers model, or a module that wraps one; it is in evaluation mode meanwhile.
        tokenizer: its tokenizer.
        corpus: what a recipe's `corpus` may be: `builtin:udhr30`, or files and datasets by language code, of which the
            half is measured that is not scored on. A list of documents, or a text of several lines, is measured whole.
        languages: which of the corpus, by code; one, a list, or `all`.
        tokens: per language, at most.
        window: tokens that the model sees at a time.
        stride: new tokens per window; the window itself if not given.
        batch_size: windows at a time; does not change the figures.

    Returns:
        By language: `perplexity`, `log_perplexity`, `bits_per_byte`, `nll` (nats), `tokens`, `bytes`.

    Raises:
        InputError: the corpus lacks a language or a text is too short, or the model has fewer positions than `window`.
    """
    import torch

    from surgeon.measure.measuring import measure_loaded
    from surgeon.measure.perplexity import evaluation_texts
    from surgeon.model.tokenizer import check_ids

    inner = _inner(model)
    texts = _corpus(corpus)
    listed = [languages] if isinstance(languages, str) else languages
    chosen = texts.languages if languages == "all" else list(dict.fromkeys(listed))
    spec = VerifySpec(tokens=tokens, window=window, stride=stride, batch_size=batch_size)
    windows = evaluation_texts(tokenizer, texts, chosen, spec)
    if inner.get_output_embeddings() is None:
        raise InputError(f"{type(inner).__name__} has no language modelling head, so it predicts no token")
    check_ids(inner, tokenizer, ([*cut.inputs, *cut.labels] for text in windows.values() for cut in text.windows))
    positions = getattr(inner.config, "max_position_embeddings", window)
    if any(is_position_table(name) for name, _ in inner.named_parameters()) and min(window, tokens) > positions:
        raise InputError(f"window {window}: more than the {positions} positions of the model")
    training = [module for module in inner.modules() if module.training]
    inner.eval()
    try:
        with torch.no_grad():
            return measure_loaded(inner, windows, batch_size)
    finally:
        for module in training:
            module.training = True


def _corpus(said: Corpus | str | Mapping[str, str | Sequence[str] | TextSpec | Mapping[str, Any]]) -> Corpus:
    """Open a corpus that may also be given as documents, or as text: a string with a line break is no path."""
    if isinstance(said, Corpus):
        return said
    if isinstance(said, str):
        return open_corpus(said)
    given: dict[str, Sequence[str]] = {}
    others: dict[str, TextSpec] = {}
    for code, text in said.items():
        try:
            spec = None if isinstance(text, str) and "\n" in text else TextSpec.of(text)
        except ValidationError as error:
            what = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise InputError(f"corpus, '{code}': {what}") from None
        if spec is not None:
            others[code] = spec
        else:
            given[code] = [text] if isinstance(text, str) else [*cast(Sequence[str], text)]
    return given_corpus(given, open_corpus(others))


_KEPT_AS = ("_module", "original_model")


def _inner(model: Any) -> Any:
    """Return the transformers model that is given, or that a module wraps.

    Raises:
        InputError: there is none, or several.
    """
    import torch
    from transformers import PreTrainedModel

    # nnsight keeps the model under one name, TransformerLens' bridge under another, neither as a part of a module.
    attributes = getattr(model, "__dict__", {})
    kept = next((held for name in _KEPT_AS if isinstance(held := attributes.get(name), torch.nn.Module)), model)
    modules = list(kept.modules()) if isinstance(kept, torch.nn.Module) else []
    models = [module for module in modules if isinstance(module, PreTrainedModel)]  # from the outside inwards
    inside = set(models[0].modules()) if models else set()
    if not models or any(module not in inside for module in models):
        raise InputError(
            f"{type(model).__name__} is not a transformers model, and wraps {'several' if models else 'none'}: "
            "give the model itself"
        )
    return models[0]


def _places(model: Any, region: Region) -> list[tuple[Slot, torch.Tensor]]:
    """Find the region's entries in the parameters; entries of stored copies of a tied weight are one parameter's."""
    import torch

    from surgeon.anatomy.slots import map_names

    slots = map_names(model, region.shapes).slots
    absent = [name for name in region if name not in slots]
    if absent:
        raise RegionError(
            f"{shorten(absent)} of the region: no such tensor in {type(model).__name__}, or of another shape there; is "
            "it the region of another model, or are the weights sharded or offloaded?"
        )
    places = []
    for name in region:
        values = slots[name].values()
        if values.is_meta or not values.is_floating_point():
            where = "on no device (offloaded?)" if values.is_meta else f"{values.dtype} (quantized?)"
            raise InputError(f"parameter of '{name}' is {where}: its entries cannot be cut here")
        places.append((slots[name], torch.from_numpy(region.indices(name))))
    return places


def _index(values: torch.Tensor, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Turn flat indices into those of every axis, which serve whatever the strides are."""
    import torch

    return tuple(torch.unravel_index(flat.to(values.device), values.shape))


def _refuse_replaced(model: Any, done: _Cut) -> None:
    """A parameter that was exchanged for another meanwhile has not got its entries back."""
    present = {id(parameter) for parameter in model.parameters()}
    if not done.parameters <= present:
        raise InputError(
            "parameters of the model were replaced by others while a region was cut out of them, so that their entries "
            "could not be put back: load the weights again, and replace parameters outside of `surgeon.cut`"
        )
