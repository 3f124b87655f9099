"""The model that transformers builds for a checkpoint, hollow until its weights are asked for.

Its parameters have their shapes and dtypes but no memory; `Weights` fills a layer's at a time with what is on disk and
empties them again, so that building a model costs neither time nor memory, whatever its size. What is filled stays if
the whole model fits into a budget: then every later use finds it there. Otherwise memory holds the modules in use and,
where asked for, the one that comes next, which a thread reads ahead. Which parameter is made of which tensors on disk
is `slots.py`'s to say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from surgeon.anatomy.hollow import architecture, building, meta_model
from surgeon.anatomy.slots import Names, ReadTensor, Slot, check_slots, map_names
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.quantized import refuse_quantized
from surgeon.errors import CheckpointError
from surgeon.foreign import build_model
from surgeon.freeze.bundle import ModelPlace
from surgeon.memory import give_memory_back
from surgeon.model import budgets
from surgeon.model.arithmetic import Precision, compute_in_float32, set_workspace
from surgeon.model.device import brought, taken_over, wait_for_arithmetic
from surgeon.model.tokenizer import load_tokenizer

_LARGEST_BUFFER = 1 << 26  # entries
Parameters = Sequence[torch.nn.Parameter]
_Fetched = list[tuple[torch.nn.Parameter, torch.Tensor]]
_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def hollow(shape: Sequence[int], dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    """Return a tensor of some shape that takes no memory: every entry is the same not-a-number."""
    return torch.full((), float("nan"), dtype=dtype, device=device).expand(tuple(shape))


class Weights:
    """Fills and empties the parameters of one model, which are hollow at first; see `resident`."""

    def __init__(self, model: Any, names: Names, read: ReadTensor, device: str, looks_ahead: bool = True) -> None:
        self._model, self._names, self._read, self._looks_ahead = model, names, read, looks_ahead
        self._paths = {
            id(parameter): path
            for path, parameter in model.named_parameters(remove_duplicate=False)
            if path in names.origins
        }
        self._filled: set[int] = set()
        self._checked: set[int] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[tuple[int, ...], Future[_Fetched]] = {}
        self.memory = budgets.memory(device)  # before any of them is there
        self.stays = sum(p.numel() * p.element_size() for p in model.parameters()) <= budgets.resident_bytes(device)

    @contextmanager
    def resident(self, parameters: Parameters, ahead: Parameters = ()) -> Iterator[None]:
        """Have these parameters filled meanwhile; those of `ahead` are read in the background, to be filled next."""
        empty = self._empty(parameters)
        waiting = self._ahead.pop(_key(empty), None)
        for parameter, value in self._fetch(empty) if waiting is None else waiting.result():
            parameter.data = taken_over(value)
        self._filled.update(map(id, empty))
        self._read_ahead(self._empty(ahead))
        try:
            yield
        finally:
            if not self.stays:
                for device in {parameter.device for parameter in empty}:
                    wait_for_arithmetic(device)  # that is computed with them: two layers take memory, and no third
                for parameter in empty:
                    parameter.data = hollow(parameter.shape, parameter.dtype, parameter.device)
                self._filled.difference_update(map(id, empty))
                give_memory_back()

    def fill(self) -> None:
        """Fill the whole model, for good."""
        self.stays = True
        with self.resident(list(self._model.parameters())):
            pass

    def _empty(self, parameters: Parameters) -> list[torch.nn.Parameter]:
        return [parameter for parameter in parameters if id(parameter) not in self._filled]

    def _read_ahead(self, parameters: Parameters) -> None:
        if self._looks_ahead and parameters and _key(parameters) not in self._ahead:
            self._pool = self._pool or ThreadPoolExecutor(1)
            self._ahead = {_key(parameters): self._pool.submit(self._fetch, parameters)}

    def _fetch(self, parameters: Parameters) -> _Fetched:
        """Make the values of parameters as they are on disk, in their dtype and on their device."""
        wanted = {self._paths[id(parameter)]: parameter for parameter in parameters}
        result: _Fetched = []
        with torch.no_grad():
            while wanted:
                origin = self._names.origins[next(iter(wanted))]
                values = origin.values(self._read, self._model)
                if origin.converter is not None and id(origin) not in self._checked:
                    made = {key: values[path] for key, path in self._paths.items() if path in values}
                    check_slots(origin, self._names.slots, made, self._read)
                    self._checked.add(id(origin))
                for path, value in values.items():
                    parameter = wanted.pop(path, None)
                    if parameter is not None:
                        result.append((parameter, brought(value, parameter.device, parameter.dtype)))
        return result


def _key(parameters: Parameters) -> tuple[int, ...]:
    return tuple(id(parameter) for parameter in parameters)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in evaluation mode. `parameters` maps on-disk tensor names to their places in the model.

    Its parameters are hollow; `weights` fills them.
    """

    checkpoint: Checkpoint
    model: Any
    tokenizer: Any
    names: Names
    weights: Weights
    precision: Precision
    device: str

    @property
    def parameters(self) -> Mapping[str, Slot]:
        """The places of the tensors on disk in the model; those without any are missing."""
        return self.names.slots


def load_model(
    checkpoint: Checkpoint, precision: Precision, device: str = "cpu", read: ReadTensor | None = None
) -> LoadedModel:
    """Build the hollow model of a checkpoint.

    `native` computes in the dtype that most of the weights have on disk, `float32` widens them. What the config
    says of dtypes does not matter. A `read` other than the checkpoint's own is called for one tensor after the other,
    always in the same order.

    Raises:
        CheckpointError: the weights are quantized, the architecture is unknown to transformers, or tensors are missing
            or of another shape.
    """
    if device.startswith("cuda"):
        set_workspace()
        if precision == "float32":
            compute_in_float32()
    refuse_quantized(checkpoint)
    chosen = architecture(checkpoint)
    _ask_for_logits_alone(chosen.config)
    dtype = torch.float32 if precision == "float32" else _stored_dtype(checkpoint)
    with _LargeOnMeta(), _parameters_on_meta(), building(checkpoint):
        model = build_model(chosen.config, dtype, chosen.auto)
    _make_hollow(model, dtype, device)
    reading = read or checkpoint.tensor
    names = _mapped(model, checkpoint, reading)
    _refuse_missing(checkpoint, model, names)
    _fill_buffers(reading, model, names)
    model.eval()
    give_memory_back()
    weights = Weights(model, names, reading, device, looks_ahead=read is None)
    return LoadedModel(checkpoint, model, load_tokenizer(checkpoint), names, weights, precision, device)


def _ask_for_logits_alone(config: Any) -> None:
    """Have the model's forward return nothing beside logits: what layers would give for it is not there without them.

    Checkpoints that were trained with a loss over their routers ask for it.
    """
    for part in (config, config.get_text_config()):
        for wish in ("output_router_logits", "output_hidden_states", "output_attentions"):
            if getattr(part, wish, False):
                setattr(part, wish, False)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the floating-point dtype that most entries have on disk."""
    counts: Counter[str] = Counter()
    for info in checkpoint.tensors.values():
        if info.dtype in _FLOATS:
            counts[info.dtype] += info.numel
    return _FLOATS[counts.most_common(1)[0][0]] if counts else torch.float32


class _LargeOnMeta(TorchFunctionMode):
    """Has tensors that are larger than any buffer made on the meta device meanwhile.

    Experts are made as one tensor before they become a parameter: 30 GB in a layer of DeepSeek-V3.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make empty tensors, and zeros, without memory."""
        named = dict(kwargs or {})
        if func in (torch.empty, torch.zeros) and not named.get("device"):
            sizes = args[0] if args and not isinstance(args[0], int) else args
            if all(isinstance(size, int) for size in sizes) and math.prod(sizes) > _LARGEST_BUFFER:
                named["device"] = "meta"
        return func(*args, **named)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Have modules that are built meanwhile register their parameters on the meta device, where nothing is initialized.

    Buffers are built as always: rotary frequencies and the like are computed and not stored.
    """
    register = torch.nn.Module.register_parameter

    def on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = type(parameter)(parameter.data.to("meta"), requires_grad=False)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def _make_hollow(model: Any, dtype: torch.dtype, device: str) -> None:
    """Replace parameters on the meta device by hollow ones, tied ones by one; move the buffers to the device."""
    wide = _kept_wide(model, dtype)
    hollowed: dict[int, torch.nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in hollowed:
                wanted = torch.float32 if wide(f"{path}.{name}") else parameter.dtype
                hollowed[id(parameter)] = torch.nn.Parameter(
                    hollow(parameter.shape, wanted, device), requires_grad=False
                )
                hollowed[id(hollowed[id(parameter)])] = hollowed[id(parameter)]
            module._parameters[name] = hollowed[id(parameter)]
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = buffer.to(device)


def _kept_wide(model: Any, dtype: torch.dtype) -> Callable[[str], bool]:
    """Say which parameters a family keeps in float32 whatever the dtype of the rest, by transformers' own lists."""
    lists = [getattr(model, "_keep_in_fp32_modules_strict", None)] if dtype != torch.float32 else []
    if dtype == torch.float16:
        lists.append(getattr(model, "_keep_in_fp32_modules", None))
    modules = {module for names in lists for module in names or ()}
    return lambda name: any(f".{module}." in f".{name}." for module in modules)


def _mapped(model: Any, checkpoint: Checkpoint, read: ReadTensor) -> Names:
    """Map names to the model, and untie what its config ties and the disk holds twice, with different values.

    transformers does the same: of such a checkpoint it believes the files and not the config.
    """
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    names = map_names(model, shapes)
    stored: dict[int, str] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        origin = names.origins.get(path)
        if origin is None or origin.converter is not None:
            continue
        name = origin.parts[0][1]
        first = stored.setdefault(id(parameter), name)
        if first != name and not _same_bytes(read(first), read(name)):
            owner, _, attribute = path.rpartition(".")
            apart = torch.nn.Parameter(hollow(parameter.shape, parameter.dtype, parameter.device), requires_grad=False)
            model.get_submodule(owner)._parameters[attribute] = apart
            return map_names(model, shapes)
    return names


def _same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def _refuse_missing(checkpoint: Checkpoint, model: Any, names: Names) -> None:
    absent = names.missing(model)
    if not absent:
        return
    state = model.state_dict()
    stored = next((name for name in checkpoint.tensors if name in absent), None)
    if stored is not None and tuple(checkpoint.tensors[stored].shape) == tuple(state[stored].shape):
        raise CheckpointError(
            f"{checkpoint.folder}: transformers takes tensor '{stored}' for another one of the model and so finds none "
            f"for '{stored}' ({len(absent)} in all): it cannot load these files itself"
        )
    if stored is not None:
        shapes = f"{list(checkpoint.tensors[stored].shape)} instead of {list(state[stored].shape)}"
        raise CheckpointError(
            f"{checkpoint.folder}: tensor '{stored}' is of another shape, {shapes} ({len(absent)} in all)"
        )
    raise CheckpointError(f"{checkpoint.folder}: tensor '{sorted(absent)[0]}' is missing ({len(absent)} in all)")


def _fill_buffers(read: ReadTensor, model: Any, names: Names) -> None:
    """Give stored buffers their values; they are small."""
    for name, buffer in model.named_buffers():
        origin = names.origins.get(name)
        if origin is not None:
            buffer.copy_(origin.values(read, model)[name])


def model_places(checkpoint: Checkpoint) -> dict[str, ModelPlace]:
    """Say where each on-disk tensor stands in the model class; nothing is read or allocated for it.

    Empty if transformers does not have the architecture; a tensor that is no run of one parameter is left out.
    """
    try:
        model = meta_model(checkpoint)
    except CheckpointError:
        return {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    slots = map_names(model, {name: info.shape for name, info in checkpoint.tensors.items()}).slots
    return {
        stored: ModelPlace(names[id(slot.parameters[0])], tuple(slot.parameters[0].shape), slot.offset)
        for stored, slot in slots.items()
        if slot.offset is not None
    }
