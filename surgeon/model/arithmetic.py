"""In which arithmetic a model is run, and on a GPU: the same bits every time, where torch has a way to them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

Precision = Literal["float32", "native"]
_ALL_PAIRS = 512  # tokens of a sequence, at most, whose attention is computed as a matrix of all pairs


def resolve_precision(dtype: Literal["auto", "float32", "native"]) -> Precision:
    """Turn `auto` into float32, whatever the device: what is found shall not depend on where it was computed."""
    return "float32" if dtype == "auto" else dtype


def set_workspace() -> None:
    """Have the library of matrix products use a workspace that fixes its sums; call it before the first product.

    Otherwise torch warns of each product while sums are to have one order, which takes longer than to start it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def compute_in_float32() -> None:
    """Have GPUs multiply float32 as float32, and not in the nineteen bits of TF32, which they may do for speed."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer ways to say so are not in every torch, and do not go with this one
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


@contextmanager
def repeatable(device: str, length: int = 0) -> Iterator[None]:
    """Have a GPU add up in the same order every time meanwhile; what has no such way is done as always.

    The gradient of attention is exact to the order for sequences of at most `_ALL_PAIRS` tokens, of `length` here: by
    the kernel that makes the matrix of all pairs, in float32 proper. The kernels that make none add up in any order.
    """
    if not device.startswith("cuda"):
        yield
        return
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    warnings.filterwarnings("ignore", message=".*deterministic")
    with ExitStack() as meanwhile:
        if 0 < length <= _ALL_PAIRS:
            meanwhile.enter_context(sdpa_kernel(SDPBackend.MATH))
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
