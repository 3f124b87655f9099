"""A model as what it mostly is: an embedding, layers one after the other, and a head.

The model's own forward is run with every decoder layer's `forward` replaced by a recorder that notes its arguments
and hands the hidden state on: that gives the embedding's output and every layer's masks, positions and other
arguments as the family itself makes them, and computes no layer. A layer is then called alone with them. The head
(final norm, projection, softcapping) is what the model does when its layers hand on a given last hidden state.

A model in which layers hand on anything but the hidden state, share parameters, or keep a state between them is no
plain stack: then there are no layers here, and the head is the whole model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from surgeon.errors import CheckpointError
from surgeon.model.model import LoadedModel

_PROBE = 5  # tokens on which it is found out whether a model is a plain stack
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # of a layer's forward, without the hidden state


@dataclass(frozen=True)
class Call:
    """One batch as it enters the layers: token ids (batch, length), the embedding's output, each layer's arguments.

    Without layers, `hidden` is None.
    """

    ids: torch.Tensor
    hidden: torch.Tensor | None
    arguments: tuple[Arguments, ...]


class _NotPlain(Exception):
    pass


class _Reached(Exception):
    """Ends a forward pass that has given all that is wanted."""


@dataclass(frozen=True, eq=False)
class Stack:
    """The parts of a model. `wraps` says that a layer returns a tuple whose first part is the hidden state."""

    loaded: LoadedModel
    layers: tuple[torch.nn.Module, ...]
    wraps: bool

    def unit(self, number: int) -> list[torch.nn.Parameter]:
        """Return the parameters of a layer; none past the last, so that one may always look ahead."""
        return list(self.layers[number].parameters()) if 0 <= number < len(self.layers) else []

    def outer(self, part: str = "all") -> list[torch.nn.Parameter]:
        """Return the parameters outside the layers: `all`, or those that the way in or the head (`out`) may need."""
        return _outer(self.loaded.model, self.layers, part)

    def enter(self, ids: torch.Tensor) -> Call:
        """Run what comes before the layers on token ids, shape (batch, length); `outer("in")` must be resident."""
        if not self.layers:
            return Call(ids, None, ())
        return _record(self.loaded.model, self.layers, ids.to(self.loaded.device), self.wraps)

    def layer(self, number: int, hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        """Run one layer, whose parameters must be resident; returns the hidden state after it, of the same shape."""
        positional, named = arguments
        output = self.layers[number](hidden, *positional, **named)
        after: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return after

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, length, vocabulary) from the hidden state after the last layer.

        `outer("out")` must be resident. What the model does before its layers is done on zeros, and lost.
        """
        model = self.loaded.model
        inputs = model.get_input_embeddings().weight
        zeros = torch.zeros(*hidden.shape[:2], inputs.shape[1], dtype=inputs.dtype, device=hidden.device)

        def give(*args: Any, **kwargs: Any) -> Any:
            return (hidden,) if self.wraps else hidden

        with _replaced(self.layers, [give] * len(self.layers)):
            logits: torch.Tensor = model(inputs_embeds=zeros, use_cache=False).logits
        return logits

    def whole(self, ids: torch.Tensor) -> torch.Tensor:
        """Return logits from token ids by the model's own forward; all parameters must be resident.

        Raises:
            CheckpointError: the model wants more than a text, such as a picture, or what an encoder reads.
        """
        model = self.loaded.model
        try:
            logits: torch.Tensor = model(input_ids=ids.to(self.loaded.device), use_cache=False).logits
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            raise self._not_text(next(iter(str(error).splitlines()), type(error).__name__)) from error
        if logits.shape[:2] != ids.shape:
            raise self._not_text(f"it gives {logits.shape[1]} outputs for {ids.shape[1]} tokens")
        return logits

    def _not_text(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.loaded.checkpoint.folder}: {type(self.loaded.model).__name__} cannot be run on a text alone "
            f"({reason}), so nothing can be scored or measured. Regions from a file, or random ones, still apply "
            "without running it"
        )


def make_stack(loaded: LoadedModel) -> Stack:
    """Find the layers of a model, and make sure by a few tokens that it is a plain stack of them."""
    model = loaded.model
    layers = _layers(model)
    ids = torch.arange(_PROBE, device=loaded.device)[None] % int(model.get_input_embeddings().weight.shape[0])
    if layers:
        with loaded.weights.resident(_outer(model, layers, "in")), torch.no_grad():
            for wraps in (False, True):
                try:
                    _record(model, layers, ids, wraps)
                except _NotPlain:
                    continue
                return Stack(loaded, layers, wraps)
    return Stack(loaded, (), False)


def _layers(model: Any) -> tuple[torch.nn.Module, ...]:
    """Return the modules of the longest list of as many as the config says that there are layers."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    count = getattr(config, "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        return ()
    uses = Counter(id(parameter) for layer in lists[0] for parameter in layer.parameters())
    return tuple(lists[0]) if all(count == 1 for count in uses.values()) else ()


def _outer(model: Any, layers: Sequence[torch.nn.Module], part: str) -> list[torch.nn.Parameter]:
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    found = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    head, embedding = (_weight(get()) for get in (model.get_output_embeddings, model.get_input_embeddings))
    if not layers or part == "all" or head is embedding:
        return found
    return [parameter for parameter in found if parameter is not (head if part == "in" else embedding)]


def _weight(module: Any) -> torch.nn.Parameter | None:
    return getattr(module, "weight", None)


@contextmanager
def _replaced(layers: Sequence[torch.nn.Module], forwards: Sequence[Any]) -> Iterator[None]:
    for layer, forward in zip(layers, forwards, strict=True):
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # what the class has comes to light again


def _record(model: Any, layers: Sequence[torch.nn.Module], ids: torch.Tensor, wraps: bool) -> Call:
    noted: list[tuple[torch.Tensor, Arguments]] = []

    def recorder(number: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if len(noted) != number or not isinstance(hidden, torch.Tensor) or (noted and hidden is not noted[0][0]):
                raise _NotPlain
            noted.append((hidden, (args[1:], kwargs)))
            if number + 1 == len(layers):
                raise _Reached
            return (hidden,) if wraps else hidden

        return forward

    try:
        with _replaced(layers, [recorder(number) for number in range(len(layers))]):
            model(input_ids=ids, use_cache=False)
        raise _NotPlain
    except _Reached:
        pass
    except (IndexError, TypeError, AttributeError, RuntimeError, ValueError, KeyError):
        raise _NotPlain from None  # the layers' outputs are used in another way
    if not all(_plain(argument) for _, arguments in noted for argument in arguments):
        raise _NotPlain
    return Call(ids, noted[0][0], tuple(arguments for _, arguments in noted))


def _plain(argument: Any) -> bool:
    """True for what no layer can leave anything in: tensors are read, everything else is a constant."""
    if isinstance(argument, tuple):
        return all(_plain(part) for part in argument)
    if isinstance(argument, dict) and all(isinstance(key, str) for key in argument):  # the keyword arguments
        return all(_plain(part) and not isinstance(part, dict) for part in argument.values())
    return isinstance(argument, (torch.Tensor, *_PLAIN))
