"""Keep a region's entries bit for bit while a trainer changes everything else.

from surgeon.freeze import freeze
frozen = freeze(model, "out/variants/frozen")   # a folder, a Hub id, a Bundle or a Region; before or after optimizers
...                                             # train as always
frozen.verify()

Needs torch, numpy, safetensors and ml_dtypes only. docs/freezing.md shows each trainer, docs/freeze-format.md
the files.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgeon.errors import FreezeError
    from surgeon.freeze.bundle import Bundle, write_bundle
    from surgeon.freeze.freezing import freeze, merge
    from surgeon.freeze.frozen import Frozen
    from surgeon.freeze.lightning import LightningFreeze
    from surgeon.freeze.saved import verify_saved
    from surgeon.freeze.sparse import adapter_region, shira
    from surgeon.freeze.tokens import token_rows
    from surgeon.freeze.trainer import FreezeCallback
    from surgeon.freeze.watch import release

__all__ = [
    "Bundle", "FreezeCallback", "FreezeError", "Frozen", "LightningFreeze",
    "adapter_region", "freeze", "merge", "release", "shira", "token_rows", "verify_saved", "write_bundle",
]  # fmt: skip

# Resolved on first use: reading a bundle needs no torch, and only the adapters need their trainers.
_HOMES = {
    "Bundle": "surgeon.freeze.bundle",
    "FreezeCallback": "surgeon.freeze.trainer",
    "FreezeError": "surgeon.errors",
    "Frozen": "surgeon.freeze.frozen",
    "LightningFreeze": "surgeon.freeze.lightning",
    "adapter_region": "surgeon.freeze.sparse",
    "freeze": "surgeon.freeze.freezing",
    "merge": "surgeon.freeze.freezing",
    "release": "surgeon.freeze.watch",
    "shira": "surgeon.freeze.sparse",
    "token_rows": "surgeon.freeze.tokens",
    "verify_saved": "surgeon.freeze.saved",
    "write_bundle": "surgeon.freeze.bundle",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'surgeon.freeze' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
