"""A hollow model's weights: filled from the mapped files a module at a time, and emptied again.

What is filled stays if the whole model fits into a budget: then every later use finds it there. Otherwise memory
holds the modules in use and, where asked for, the one that comes next, which a thread reads ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from surgeon.anatomy.slots import Names, ReadTensor, check_slots
from surgeon.memory import give_memory_back
from surgeon.model import budgets
from surgeon.model.moving import brought, taken_over, wait_for_arithmetic

Parameters = Sequence[torch.nn.Parameter]
_Fetched = list[tuple[torch.nn.Parameter, torch.Tensor]]


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
