"""What can be added from outside: kinds of scores, regions, scopes, operations and formats of quantized weights.

A kind is a class in a file of its own that knows everything about itself. The package's own kinds are named here, by
module and class, and loaded when they are first asked for. An installed package adds its kinds by entry points in the
group of the same name (docs/extending.md); it cannot take a name that is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from surgeon.errors import EnvironmentFailure

OWN: Mapping[str, Mapping[str, str]] = {
    "surgeon.formats": {  # in the order in which they are asked
        "fp8-block": "surgeon.formats.fp8_block:Fp8Block",
        "mxfp4": "surgeon.formats.mxfp4:Mxfp4",
        "fp8-scaled": "surgeon.formats.fp8_scaled:Fp8Scaled",
        "fp4": "surgeon.formats.fp4:Fp4",
        "compressed-integers": "surgeon.formats.compressed_integers:CompressedIntegers",
        "gptq": "surgeon.formats.gptq:Gptq",
        "awq": "surgeon.formats.awq:Awq",
        "bitsandbytes": "surgeon.formats.bitsandbytes:BitsAndBytes4",
        "bitsandbytes-8": "surgeon.formats.bitsandbytes:BitsAndBytes8",
    },
    "surgeon.scores": {
        "grad_param": "surgeon.scores.grad_param:GradParam",
        "wanda": "surgeon.scores.wanda:Wanda",
        "activation": "surgeon.scores.activation:Activation",
        "magnitude": "surgeon.scores.magnitude:Magnitude",
        "delta": "surgeon.scores.delta:Delta",
        "random": "surgeon.scores.random:Random",
    },
    "surgeon.scopes": {
        "tensor": "surgeon.regions.scopes:PerTensor",
        "layer": "surgeon.regions.scopes:PerLayer",
        "global": "surgeon.regions.scopes:AllTensors",
        "output": "surgeon.regions.scopes:PerOutput",
    },
    "surgeon.regions": {
        "select": "surgeon.regions.selected:Select",
        "file": "surgeon.regions.file:File",
        "neurons": "surgeon.regions.neurons:Neurons",
        "combine": "surgeon.regions.combined:Combine",
        "entries": "surgeon.regions.entries:Entries",
        "tokens": "surgeon.regions.tokens:Tokens",
        "dimensions": "surgeon.regions.dimensions:Dimensions",
        "control": "surgeon.regions.control:Control",
    },
    "surgeon.operations": {
        "zero": "surgeon.operations.zero:Zero",
        "scale": "surgeon.operations.scale:Scale",
        "fill": "surgeon.operations.fill:Fill",
        "noise": "surgeon.operations.noise:Noise",
        "shuffle": "surgeon.operations.shuffle:Shuffle",
        "restore": "surgeon.operations.restore:Restore",
        "add": "surgeon.operations.add:Add",
        "slerp": "surgeon.operations.slerp:Slerp",
    },
    "surgeon.measurements": {
        "perplexity": "surgeon.measure.perplexity:Perplexity",
        "divergence": "surgeon.measure.divergence:Divergence",
        "choice": "surgeon.measure.choice:Choice",
        "words": "surgeon.measure.words:Words",
        "language_kept": "surgeon.measure.language_kept:LanguageKept",
        "tasks": "surgeon.measure.tasks:Tasks",
    },
}


@lru_cache
def kinds(group: str) -> Mapping[str, type[Any]]:
    """Return the kinds of a group by the names that recipes use for them.

    Raises:
        EnvironmentFailure: an installed package's entry point cannot be loaded, or takes a name that is taken.
    """
    classes = {name: _load(where) for name, where in OWN[group].items()}
    for point in entry_points(group=group):
        origin = f"entry point '{point.name}' in group {group} ({point.value})"
        if point.name in classes:
            raise EnvironmentFailure(f"{origin}: the name is taken; rename it, or uninstall the package")
        try:
            classes[point.name] = point.load()
        except Exception as error:  # code of another package
            said = f"{type(error).__name__}: {error}"
            raise EnvironmentFailure(f"{origin} cannot be loaded ({said}); mend or uninstall the package") from error
    return classes


def _load(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
