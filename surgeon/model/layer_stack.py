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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from surgeon.anatomy.reading import decoder_layers
from surgeon.errors import CheckpointError
from surgeon.model.budgets import ModelSize, chunk_tokens
from surgeon.model.model import LoadedModel

_PROBE = 5  # tokens on which it is found out whether a model is a plain stack
_COMPARED = 40  # tokens on which the stack is compared with the model's own forward
_ALIKE = 1e-4  # of the largest logit, in float32; in shorter formats roundings differ by more
_ALIKE_IN_SHORT = 3e-2
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # of a layer's forward, without the hidden state


@dataclass(frozen=True)
class Call:
    """One batch as it enters the layers: the embedding's output, and each layer's arguments.

    Without layers it enters the head, as it is: token ids (batch, length).
    """

    hidden: torch.Tensor
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

    def inner(self, number: int) -> list[torch.nn.Parameter]:
        """Return the parameters of a layer; none past the last, so that one may always look ahead."""
        return list(self.layers[number].parameters()) if 0 <= number < len(self.layers) else []

    def outer(self, part: str = "all") -> list[torch.nn.Parameter]:
        """Return the parameters outside the layers: `all`, or those that the way in or the head (`out`) may need."""
        return _outer(self.loaded.model, self.layers, part)

    @property
    def size(self) -> ModelSize:
        """How large the model is, where it is run."""
        parts = [self.outer(), *(self.inner(number) for number in range(len(self.layers)))]
        entries = [sum(parameter.numel() for parameter in part) for part in parts]
        return ModelSize(self.loaded.weights.memory, sum(entries), max(entries), self.loaded.weights.stays)

    def enter(self, ids: torch.Tensor) -> Call:
        """Run what comes before the layers on token ids, shape (batch, length); `outer("in")` must be resident."""
        if not self.layers:
            return Call(ids, ())
        return _record(self.loaded.model, self.layers, ids.to(self.loaded.device), self.wraps)

    def layer(self, number: int, hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        """Run one layer, whose parameters must be resident; returns the hidden state after it, of the same shape."""
        positional, named = arguments
        output = self.layers[number](hidden, *positional, **named)
        after: torch.Tensor = output[0] if isinstance(output, (tuple, list)) else output
        return after

    def through(self, call: Call) -> torch.Tensor:
        """Run all layers, whose parameters must be resident; returns the hidden state after the last."""
        hidden = call.hidden
        for number, arguments in enumerate(call.arguments):
            hidden = self.layer(number, hidden, arguments)
        return hidden

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, length, vocabulary) from the hidden state after the last layer, see `Call`.

        `outer("out")` must be resident. What the model does before its layers is done on zeros, and lost.
        """
        if not self.layers:
            return self.whole(hidden)
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
    """Find the layers of a model, and make sure that it is a plain stack of them."""
    stack = Stack(loaded, *plain_layers(loaded.model))
    return stack if is_whole_model(stack) else Stack(loaded, (), False)


def plain_layers(model: Any) -> tuple[tuple[torch.nn.Module, ...], bool]:
    """Return the layers of a model that is a plain stack of them, and whether each returns a tuple; else none.

    No weight is looked at: it is found out on a few tokens, with constants in place of what is outside the layers. They
    pass twice, the second time with layers whose outputs are disturbed: what a layer is given beside the hidden state
    must not have changed.
    """
    layers = _layers(model)
    if layers:
        embedding = model.get_input_embeddings().weight
        ids = torch.arange(_PROBE, device=embedding.device)[None] % int(embedding.shape[0])
        with _constants(_outer(model, layers, "all")), torch.no_grad():
            for wraps in (False, True):
                try:
                    undisturbed = _record(model, layers, ids, wraps)
                    disturbed = _record(model, layers, ids, wraps, disturbed=True)
                except _NotPlain:
                    continue
                if alike(undisturbed.arguments, disturbed.arguments, _close):
                    return layers, wraps
    return (), False


def vocabulary(stack: Stack) -> int:
    """Return how many tokens a model chooses among."""
    config = stack.loaded.model.config
    return int((config.get_text_config() if hasattr(config, "get_text_config") else config).vocab_size)


def head_chunks(stack: Stack, ids: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut a batch (rows, length) into rows and positions, such that the logits of a chunk stay small.

    The whole batch is one chunk of a model without layers.
    """
    rows, length = ids.shape
    if not stack.layers:
        yield slice(0, rows), slice(0, length)
        return
    tokens = chunk_tokens(vocabulary(stack), stack.loaded.device)
    together, step = max(1, tokens // length), min(tokens, length)
    for first in range(0, rows, together):
        for start in range(0, length, step):
            yield slice(first, min(first + together, rows)), slice(start, min(start + step, length))


def without_gradients(model: Any) -> str | None:
    """Say why a model has no gradient as it is run here, if so: reversible layers have one in training mode only."""
    if any(hasattr(type(module), "backward_pass") for module in model.modules()):
        return (
            f"{type(model).__name__} has reversible layers, which transformers gives a gradient in training mode only, "
            "so gradients cannot score it: use another kind, such as wanda or magnitude"
        )
    return None


def is_whole_model(stack: Stack) -> bool:
    """Compare the stack with the model's own forward on a few tokens, where all the weights stay in memory."""
    loaded = stack.loaded
    if not stack.layers or not loaded.weights.stays:
        return True
    rows = int(loaded.model.get_input_embeddings().weight.shape[0])
    config = loaded.model.config.get_text_config()
    positions = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    tokens = min([_COMPARED, *(count for count in positions if type(count) is int and count > 0)])
    ids = torch.randint(0, rows, (1, tokens), generator=torch.Generator().manual_seed(0))
    with loaded.weights.resident(list(loaded.model.parameters())), torch.no_grad():
        other = stack.whole(ids).float()
        try:
            one = stack.head(stack.through(stack.enter(ids))).float()
        except (_NotPlain, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
            return False  # what the layers and the head hand on is something else than it seemed to be
    if one.shape != other.shape:
        return False
    share = _ALIKE if loaded.precision == "float32" else _ALIKE_IN_SHORT
    close = torch.isclose(one, other, rtol=0, atol=share * float(other.abs().nan_to_num().max()), equal_nan=True)
    return bool(close.all())


def _layers(model: Any) -> tuple[torch.nn.Module, ...]:
    """Return the layers of the text decoder, if they are one list and share no parameter."""
    paths, _ = decoder_layers(model)
    modules = dict(model.named_modules())
    if len({path.rpartition(".")[0] for path in paths}) != 1:
        return ()
    layers = tuple(modules[path] for path in paths)
    uses = Counter(id(parameter) for layer in layers for parameter in layer.parameters())
    return layers if all(count == 1 for count in uses.values()) else ()


@contextmanager
def _constants(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Have each parameter hold one value everywhere meanwhile, which takes no memory."""
    before = [parameter.data for parameter in parameters]
    for parameter in parameters:
        value = torch.full((), 0.01, dtype=parameter.dtype, device=parameter.device)
        parameter.data = value.expand(parameter.shape)
    try:
        yield
    finally:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data


def alike(one: Any, other: Any, tensors: Callable[[torch.Tensor, torch.Tensor], bool]) -> bool:
    """True if two arguments of a layer are the same; `tensors` compares those in them."""
    if one is other:
        return True
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and tensors(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(alike(*pair, tensors) for pair in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key], tensors) for key in one)
    return bool(one == other)


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """True if they are close; not a number counts as close to itself."""
    return one.shape == other.shape and bool(torch.isclose(one.float(), other.float(), equal_nan=True).all())


def _outer(model: Any, layers: Sequence[torch.nn.Module], part: str) -> list[torch.nn.Parameter]:
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    head, embedding = (_weight(get()) for get in (model.get_output_embeddings, model.get_input_embeddings))
    if not layers or part == "all" or head is embedding:
        return outside
    return [parameter for parameter in outside if parameter is not (head if part == "in" else embedding)]


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


def _record(
    model: Any, layers: Sequence[torch.nn.Module], ids: torch.Tensor, wraps: bool, disturbed: bool = False
) -> Call:
    noted: list[tuple[torch.Tensor, Arguments]] = []
    handed: list[torch.Tensor] = []

    def recorder(number: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if len(noted) != number or not isinstance(hidden, torch.Tensor) or (handed and hidden is not handed[-1]):
                raise _NotPlain
            noted.append((hidden, (args[1:], kwargs)))
            if number + 1 == len(layers):
                raise _Reached
            handed.append(hidden * (number + 2) + 1 if disturbed else hidden)
            return (handed[-1],) if wraps else handed[-1]

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
    return Call(noted[0][0], tuple(arguments for _, arguments in noted))


def _plain(argument: Any) -> bool:
    """True for what no layer can leave anything in: tensors are read, everything else is a constant."""
    if isinstance(argument, tuple):
        return all(_plain(part) for part in argument)
    if isinstance(argument, dict) and all(isinstance(key, str) for key in argument):  # the keyword arguments
        return all(_plain(part) and not isinstance(part, dict) for part in argument.values())
    return isinstance(argument, (torch.Tensor, *_PLAIN))
