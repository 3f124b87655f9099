"""A second device that stands in for a GPU: what is there lies in ordinary memory, and only copies reach it.

Its tensors say that they are on `DEVICE`. While a `SecondDevice` is active, every operation on them is done in ordinary
memory; one that takes tensors of both devices is refused, as CUDA refuses it, and every copy between the two is noted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "lazy"
_COPIES = ("aten::_to_copy", "aten::to", "aten::copy_")
_TO_PYTHON = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal")
_INDEXED = ("aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put")


class There(torch.Tensor):
    """A tensor on the device; `inner` has its values."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> There:
        made: There = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(DEVICE), requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    @property
    def data(self) -> There:
        return There(self.inner)

    @data.setter
    def data(self, value: There) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the second device, in {threading.current_thread().name}")


@dataclass(frozen=True)
class Crossing:
    """A copy from one device to the other; `during` is the function of ours that was at work, if it is watched."""

    up: bool
    bytes: int
    dtype: torch.dtype
    during: str


class SecondDevice(TorchDispatchMode):
    """Does what is done there, and notes what crosses."""

    def __init__(self, crossings: list[Crossing] | None = None, during: str = "") -> None:
        super().__init__()
        self.crossings: list[Crossing] = [] if crossings is None else crossings
        self.during = during

    def within(self, owner: Any, name: str, monkeypatch: Any) -> None:
        """Have what crosses within a function be noted under its name, whatever thread it runs in."""
        real: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                with SecondDevice(self.crossings, name):
                    return real(*args, **kwargs)
            with self._named(name):
                return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    def bytes(self, up: bool, during: str | None = None) -> int:
        """Return the bytes that crossed in one direction."""
        return sum(one.bytes for one in self.crossings if one.up == up and during in (None, one.during))

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        before, self.during = self.during, name
        try:
            yield
        finally:
            self.during = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, _ = tree_flatten((args, kwargs or {}))
        tensors = [item for item in flat if isinstance(item, torch.Tensor)]
        there = [isinstance(item, There) for item in tensors]
        asked = next((item.type == DEVICE for item in flat if isinstance(item, torch.device)), None)
        where, name = any(there) if asked is None else asked, func._schema.name
        if not where and not any(there):
            return func(*args, **(kwargs or {}))
        if name == "aten::copy_":
            where = there[0]
            self._cross(there[1], there[0], tensors[1])
        elif name in _COPIES:
            self._cross(there[0], where, tensors[0])
        elif name in _INDEXED:
            for item, is_there in zip(tensors[1:], there[1:], strict=True):
                if item.dim():
                    self._cross(is_there, there[0], item)
        elif name not in _TO_PYTHON and any(
            item.dim() and not is_there for item, is_there in zip(tensors, there, strict=True)
        ):
            raise RuntimeError(f"{name}: expected all tensors to be on one device")
        plain = [item.inner if isinstance(item, There) else item for item in tensors]
        originals = {id(inner): item for inner, item in zip(plain, tensors, strict=True)}
        done = func(*tree_map(_plain, args), **tree_map(_plain, kwargs or {}))
        moved = name in _COPIES and name != "aten::copy_" and where != there[0]

        def back(item: Any) -> Any:
            if not isinstance(item, torch.Tensor):
                return item
            if moved:
                item = item.clone()
            elif id(item) in originals:
                return originals[id(item)]
            return There(item) if where else item

        return tree_map(back, done)

    def _cross(self, source: bool, target: bool, values: torch.Tensor) -> None:
        if source != target:
            size = values.numel() * values.element_size()
            self.crossings.append(Crossing(target, size, values.dtype, self.during))


def _plain(item: Any) -> Any:
    if isinstance(item, There):
        return item.inner
    return torch.device("cpu") if isinstance(item, torch.device) and item.type == DEVICE else item
