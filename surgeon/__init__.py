"""surgeon: recipe-driven surgery on language models.

import surgeon
report = surgeon.apply("zero_core", output="out")
checkpoint = surgeon.Checkpoint.open("builtin:tiny30")
region = surgeon.Region.load("out/regions/core.region.safetensors")

and on a transformers model that is in memory already:

with surgeon.cut(model, region):
    print(surgeon.perplexity(model, tokenizer, languages=["ar", "en"]))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgeon.api import apply, score, verify_checkpoint
    from surgeon.checkpoint.checkpoint import Checkpoint
    from surgeon.diff.comparison import compare
    from surgeon.errors import SurgeonError
    from surgeon.loaded import cut, perplexity
    from surgeon.plan.planning import plan_recipe
    from surgeon.region.region import Region
    from surgeon.report.data import Report
    from surgeon.write.staging import write_variant

__version__ = "0.1.0"

__all__ = [
    "Checkpoint", "Region", "Report", "SurgeonError", "__version__",
    "apply", "compare", "cut", "perplexity", "plan_recipe", "score", "verify_checkpoint", "write_variant",
]  # fmt: skip

# Resolved on first use, so that `import surgeon` and `surgeon --help` load nothing heavy. No name here may be
# that of a submodule: importing the submodule would replace it.
_HOMES = {
    "Checkpoint": "surgeon.checkpoint.checkpoint",
    "Region": "surgeon.region.region",
    "Report": "surgeon.report.data",
    "SurgeonError": "surgeon.errors",
    "apply": "surgeon.api",
    "compare": "surgeon.diff.comparison",
    "cut": "surgeon.loaded",
    "perplexity": "surgeon.loaded",
    "plan_recipe": "surgeon.plan.planning",
    "score": "surgeon.api",
    "verify_checkpoint": "surgeon.api",
    "write_variant": "surgeon.write.staging",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'surgeon' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
